package datastore

import (
	"fmt"
	"strings"
)

// TenantTier is the tier of the policies that keep tenants from each other.
const TenantTier = "tenants"

// NewTenantTier is that tier: before those of order 1 and later, which decide what it does not.
func NewTenantTier() *Tier {
	t := &Tier{Metadata: Metadata{Name: TenantTier}, Spec: TierSpec{Order: new(0), DefaultAction: TierPass}}
	t.SetDefaults()
	return t
}

// NewTenantPolicy is the policy that keeps a tenant from others. Which endpoints are a tenant's
// says the label LabelTenant of their profiles, which names the tenant.
func NewTenantPolicy(tenant string) *Policy {
	p := &Policy{Metadata: Metadata{Name: TenantTier + "." + tenant}}
	others := Side{Selector: Term{Value: fmt.Sprintf("has(%[1]s) && %[1]s != '%[2]s'", LabelTenant, tenant)}}
	p.Spec = PolicySpec{
		Tier: TenantTier, Selector: fmt.Sprintf("%s == '%s'", LabelTenant, tenant),
		Ingress: []Rule{{Action: Deny, From: others}}, Egress: []Rule{{Action: Deny, To: others}},
	}
	p.SetDefaults()
	return p
}

// TenantOf is the tenant of the first of the profiles that is one's; "": none is.
func (v *View) TenantOf(profiles ...string) string {
	for _, name := range profiles {
		if p := v.Profile(name); p != nil && p.Spec.Labels[LabelTenant] != "" {
			return p.Spec.Labels[LabelTenant]
		}
	}
	return ""
}

// Tenant is the tenant that a policy was made for; "": it is none of those.
func (p *Policy) Tenant() string {
	if tenant, is := strings.CutPrefix(p.Metadata.Name, TenantTier+"."); is && p.Spec.Tier == TenantTier {
		return tenant
	}
	return ""
}
