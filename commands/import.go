package commands

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"netctl/commands/calico"
)

func newImportCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "import",
		Short:   "Turn what another system keeps into manifests",
		Example: "  calicoctl get ippools -o yaml | netctl import calico - > pools.yaml\n  netctl import calico policies.yaml | netctl apply -f -",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Args:    cobra.NoArgs,
	}
	cmd.AddCommand(newImportCalicoCommand(a))
	return cmd
}

func newImportCalicoCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "calico FILE|-",
		Short: "Turn Calico's resources into manifests",
		Long: "Turn Calico's resources into manifests for `netctl apply -f -`. FILE (- is stdin) holds YAML or JSON, as `calicoctl get KIND -o yaml` writes it:\n" +
			"resources of projectcalico.org/v3, or those of calicoctl 1 of 2016 (apiVersion v1); documents, lists, or both.\n\n" +
			"What netctl cannot say, or says otherwise, is on stderr, one line each: place, resource, field, what became of it. A rule that cannot be said in full\n" +
			"is left out if it allows, and denies more if it denies: nothing is open that was closed. What Calico's datastore keeps of a resource (uid,\n" +
			"resourceVersion, creationTimestamp, …) is not mentioned. Nothing is read from or written to a datastore.",
		Example:     "  calicoctl get gnp -o yaml | netctl import calico - > policies.yaml\n  netctl import calico pools.yaml | netctl apply -f - --dry-run",
		Args:        cobra.ExactArgs(1),
		Annotations: map[string]string{exitCodes: "0 all was translated, 1 something was left out or changed (its lines say what), or failed, 2 usage"},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := a.readInput(cmd.Context(), args[0], maxManifest)
			if err != nil {
				return err
			}
			return a.importCalico(inputName(args[0]), raw)
		},
	}
}

// importCalico prints what the resources of a file are in netctl, and tells the rest.
func (a *app) importCalico(name string, raw []byte) error {
	nodes, err := resources(name, raw)
	if err != nil {
		return err
	}
	var documents []any
	for _, n := range nodes {
		d, err := decodeResource(n)
		if err != nil {
			return fmt.Errorf("%s:%d: %w", name, errorLine(n, err), err)
		}
		documents = append(documents, d)
	}
	objects, remarks := calico.Convert(documents)
	text, err := manifestYAML(objects)
	if err != nil {
		return err
	}
	if err := a.print(string(text)); err != nil {
		return err
	}
	for _, r := range remarks {
		if _, err := fmt.Fprintf(a.err, "%s:%d: %s\n", name, fieldLine(nodes[r.Document], r.Field), r); err != nil {
			return err
		}
	}
	if len(remarks) > 0 {
		return fmt.Errorf("%s: %s made; left out or changed, see above: %d", name, count(len(objects), "object"), len(remarks))
	}
	return nil
}

// resources are the resources of a file: its documents, and what lists among them hold.
func resources(name string, raw []byte) (out []*yaml.Node, err error) {
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	for {
		var doc yaml.Node
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, yamlError(name, err)
		}
		if len(doc.Content) > 0 && doc.Content[0].Tag != "!!null" {
			out = append(out, listed(doc.Content[0])...)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no resource in it", name)
	}
	return out, nil
}

// listed is what a list holds, be it YAML's or a resource with items; else the node itself.
func listed(n *yaml.Node) (out []*yaml.Node) {
	items := n
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == "items" {
				items = n.Content[i+1]
			}
		}
	}
	if items.Kind != yaml.SequenceNode {
		return []*yaml.Node{n}
	}
	for _, item := range items.Content {
		out = append(out, listed(item)...)
	}
	return out
}

// decodeResource is a node as JSON has it; a key given twice is an error, since one of the
// two would be passed over.
func decodeResource(n *yaml.Node) (value any, err error) {
	if err := keysOnce(n); err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	if err := writeJSON(&buf, n); err != nil {
		return nil, err
	}
	dec := json.NewDecoder(&buf)
	dec.UseNumber()
	return value, dec.Decode(&value)
}

func keysOnce(n *yaml.Node) error {
	seen := map[string]bool{}
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			if seen[c.Value] {
				return &lineError{c.Line, fmt.Sprintf("%q is given twice", c.Value)}
			}
			seen[c.Value] = true
		}
		if err := keysOnce(c); err != nil {
			return err
		}
	}
	return nil
}
