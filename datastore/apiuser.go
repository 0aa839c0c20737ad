package datastore

import (
	"context"
	"strings"
	"time"
)

// APIRole is what a client of the HTTP API may do: each role may what those before it may.
type APIRole int

// The roles.
const (
	APINone    APIRole = iota
	APIRead            // look at everything that is no secret
	APIOperate         // change what comes and goes with workloads
	APIAdmin           // everything
)

// apiOrganisation begins the organisation of a certificate for the API; the role follows.
const apiOrganisation = "netctl api "

func apiRoleNames() []string { return []string{"none", "read", "operate", "admin"} }

// String is the role's name.
func (r APIRole) String() string { return apiRoleNames()[r] }

// ParseAPIRole is the inverse of String; there is no certificate for APINone.
func ParseAPIRole(s string) (APIRole, error) {
	for r := APIRead; r <= APIAdmin; r++ {
		if s == r.String() {
			return r, nil
		}
	}
	return APINone, &FieldError{Field: "role", Value: s, Reason: "is none: read, operate or admin"}
}

// Organisation is what a certificate of that role says that its holder is.
func (r APIRole) Organisation() string { return apiOrganisation + r.String() }

// APIRoleOf is the role of a certificate's holder, the smallest if it says several. api:
// it is a certificate for the API, which is good for nothing else.
func APIRoleOf(organisations []string) (role APIRole, api bool) {
	for _, o := range organisations {
		name, is := strings.CutPrefix(o, apiOrganisation)
		if !is {
			continue
		}
		one, err := ParseAPIRole(name)
		if !api || err != nil || one < role {
			role = one
		}
		if api = true; err != nil {
			return APINone, true
		}
	}
	return role, api
}

// KindRole is who may write objects of a kind by hand.
func KindRole(k Kind) APIRole {
	switch k {
	case KindEndpoint, KindProfile, KindNetwork, KindPolicy, KindTier, KindNetworkSet:
		return APIOperate
	}
	return APIAdmin
}

// APIUserPrefix is the root of the APIUsers, which lie beside what nodes may read.
const APIUserPrefix = "/netctl/api/v1/users/"

// APIUser says which certificate of a name is good for the API. Of a name that has no
// record none of netctl's own authority is, and each of another one that the API trusts.
type APIUser struct {
	Name string `json:"name"`
	Role string `json:"role"`
	// Serial is the certificate's number, hexadecimal; "": none is good any more.
	Serial  string    `json:"serial,omitempty"`
	Since   time.Time `json:"since"`
	Expires time.Time `json:"expires"`
	Revoked time.Time `json:"revoked,omitzero"`
}

// APIUserKey is the key of a user's record.
func APIUserKey(name string) (string, error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	return APIUserPrefix + name, nil
}

// ListAPIUsers returns every user's record, by name.
func ListAPIUsers(ctx context.Context, s Store) ([]APIUser, error) {
	snap, err := s.List(ctx, APIUserPrefix)
	if err != nil {
		return nil, err
	}
	list := make([]APIUser, 0, len(snap.Entries))
	for _, e := range snap.Entries {
		var u APIUser
		if err := decodeRecord(e, &u); err != nil {
			return nil, err
		}
		list = append(list, u)
	}
	return list, nil
}
