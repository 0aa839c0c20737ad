package commands

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

// manifestHelp is what the commands that read manifests say about them.
const manifestHelp = "The file holds YAML or JSON documents, each one object or a list of them; - is stdin. Everything is checked before\n" +
	"anything is written. More objects than one transaction takes (99) are written in several, each whole or not at all;\n" +
	"if a later one fails the message says how far it came. An object with metadata.revision is written only if nobody changed\n" +
	"it since that revision."

// writeCommand makes apply, create and replace.
func writeCommand(a *app, name, short, example string, mode writeMode) *cobra.Command {
	var files []string
	var dryRun bool
	cmd := &cobra.Command{
		Use:     name + " -f FILE|-",
		Short:   short,
		Long:    short + ".\n" + manifestHelp,
		Example: example,
		Args:    cobra.NoArgs,

		DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "manifest `file`, - for stdin; may be repeated")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check, and say what would happen")
	_ = cmd.MarkFlagRequired("filename")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var list []manifest
		for _, f := range files {
			more, err := a.readManifests(cmd.Context(), f)
			if err != nil {
				return err
			}
			list = append(list, more...)
		}
		return a.writeAndTell(cmd, list, mode, dryRun)
	}
	return cmd
}

func (a *app) writeAndTell(cmd *cobra.Command, list []manifest, mode writeMode, dryRun bool) error {
	for _, m := range list {
		if err := a.may(m.object.Kind()); err != nil {
			return fmt.Errorf("%s%s: %w", m.where(), label(m.object), err)
		}
	}
	if !dryRun {
		var printing error
		var pools []netip.Prefix
		err := a.write(cmd.Context(), list, mode, func(p planned) {
			if pool, ok := p.object.(*datastore.Pool); ok && p.verb == "created" {
				pools = append(pools, pool.Spec.CIDR)
			}
			if printing == nil {
				printing = a.tell(p, "")
			}
		})
		if err = cmp.Or(err, printing); err != nil || len(pools) == 0 {
			return err
		}
		return a.warnSubnets(cmd.Context(), pools)
	}
	s, err := a.store(cmd.Context())
	if err != nil {
		return err
	}
	n := neededToWrite(list)
	if slices.ContainsFunc(list, func(m manifest) bool { return slices.Contains(judgedKinds(), m.object.Kind()) }) {
		n.all(judgedKinds()...)
	}
	view, err := a.list(cmd.Context(), s, n)
	if err != nil {
		return err
	}
	before := judgedObjects(view)
	slices.SortStableFunc(list, func(x, y manifest) int { return kindRank(x.object) - kindRank(y.object) })
	plans, err := planWrite(view, list, mode)
	if err != nil {
		return err
	}
	return a.tellPlans(cmd.Context(), s, before, view, plans)
}

func newApplyCommand(a *app) *cobra.Command {
	return writeCommand(a, "apply", "Create or update objects from manifests",
		"  netctl apply -f cluster.yaml\n  netctl get pools -o yaml | netctl apply -f - --dry-run", modeApply)
}

func newCreateCommand(a *app) *cobra.Command {
	return writeCommand(a, "create", "Create objects from manifests; none may exist",
		"  netctl create -f pools.yaml\n  netctl create -f pools.yaml --dry-run", modeCreate)
}

func newReplaceCommand(a *app) *cobra.Command {
	return writeCommand(a, "replace", "Replace objects from manifests; all must exist",
		"  netctl replace -f profile.yaml\n  netctl get profile web -o yaml | sed s/80/8080/ | netctl replace -f -", modeReplace)
}

func newDeleteCommand(a *app) *cobra.Command {
	var files []string
	var force, dryRun bool
	cmd := &cobra.Command{
		Use:                   "delete (KIND NAME… | -f FILE)",
		Short:                 "Delete objects that nothing uses",
		Example:               "  netctl delete profile web\n  netctl delete -f cluster.yaml --dry-run",
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     a.completeKindAndName,
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "manifest `file` that names the objects, - for stdin")
	cmd.Flags().BoolVar(&force, "force", false, "delete them whatever uses them, and what cannot be read")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check, and say what would happen")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var list []manifest
		switch {
		case len(files) > 0 && len(args) == 0:
			for _, f := range files {
				more, err := a.readManifests(cmd.Context(), f)
				if err != nil {
					return err
				}
				list = append(list, more...)
			}
			// What refers to others goes before what it refers to.
			slices.SortStableFunc(list, func(x, y manifest) int { return kindRank(y.object) - kindRank(x.object) })
		case len(files) == 0 && len(args) > 1:
			kind, err := parseKind(args[0])
			if err != nil {
				return err
			}
			for _, n := range args[1:] {
				o, err := datastore.New(kind)
				if err != nil {
					return err
				}
				o.Meta().Name = nameOfKind(kind, n)
				if err := checkNames(kind, o.Meta().Name); err != nil && !(force && a.stored(cmd.Context(), kind, o.Meta().Name)) {
					return err
				}
				list = append(list, manifest{object: o})
			}
		default:
			return usage("delete wants either KIND and NAME or -f FILE; usage: %s", cmd.UseLine())
		}
		return a.deleteAndTell(cmd, list, force, dryRun)
	}
	return cmd
}

// stored says whether there is something under the key of an object, whatever its name is.
func (a *app) stored(ctx context.Context, kind datastore.Kind, name string) bool {
	store, err := a.store(ctx)
	if err == nil {
		_, err = store.Get(ctx, datastore.KindPrefix(kind)+name)
	}
	return err == nil
}

func (a *app) deleteAndTell(cmd *cobra.Command, list []manifest, force, dryRun bool) error {
	for _, m := range list {
		if err := a.may(m.object.Kind()); err != nil {
			return fmt.Errorf("%s%s: %w", m.where(), label(m.object), err)
		}
	}
	if dryRun {
		return a.tellDelete(cmd.Context(), list, force)
	}
	for i, m := range list {
		o := m.object
		if err := a.delete(cmd.Context(), o.Kind(), o.Meta().Name, force); err != nil {
			return farther(i, len(list), fmt.Errorf("%s%w", m.where(), err))
		}
		if err := a.print(label(o) + " deleted\n"); err != nil {
			return err
		}
	}
	return nil
}

// delete removes one object and what goes with it.
func (a *app) delete(ctx context.Context, kind datastore.Kind, name string, force bool) error {
	if force && kind != datastore.KindNode { // with a node goes more
		store, err := a.store(ctx)
		if err != nil {
			return err
		}
		if done, err := a.discard(ctx, store, kind, name); done || err != nil {
			return err
		}
	}
	switch kind {
	case datastore.KindPool:
		return a.removePool(ctx, name, force)
	case datastore.KindNode:
		return a.removeNode(ctx, name, force)
	case datastore.KindEndpoint:
		e, err := read[*datastore.Endpoint](ctx, a, name)
		if errors.Is(err, datastore.ErrInvalid) {
			err = fmt.Errorf("%w; --force removes it", err)
		}
		if err != nil {
			return err
		}
		return a.takeEndpoint(ctx, e, force, func() error { return a.deleteEndpoint(ctx, e) })
	}
	return a.remove(ctx, kind, []string{name}, force, nil)
}
