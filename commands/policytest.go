package commands

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newPolicyTestCommand(a *app) *cobra.Command {
	var manifests []string
	var offline, staged, live bool
	var junit string
	cmd := &cobra.Command{
		Use:   "test FILE",
		Short: "Hold what the rules say against what is expected",
		Long: "Hold what the rules say against what is expected. FILE (- is stdin) has one expectation a line; # begins a comment:\n" +
			"    (allow|deny) SRC DST [PROTO [PORT]]\n" +
			"SRC, DST, PROTO and PORT are those of `netctl explain`; without PORT, or PROTO, all of them have to fare so. --manifest adds objects to what the\n" +
			"datastore has, or puts them in the place of those of the same name: what would be if they were applied. --offline asks no datastore.\n" +
			"--live sends a packet for each, as `netctl trace` does, and says what became of it in the kernels of the nodes.",
		Example: "  netctl policy test expected.txt\n  netctl policy test expected.txt --manifest policies.yaml --offline --junit report.xml",
		Args:    cobra.ExactArgs(1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		Annotations: map[string]string{exitCodes: "0 all as expected, 1 failed or could not tell, 2 usage, 3 something is not as expected"},
	}
	f := addFormat(cmd)
	cmd.Flags().StringSliceVar(&manifests, "manifest", nil, "`file` of objects to test with; may be repeated")
	cmd.Flags().BoolVar(&offline, "offline", false, "take nothing from the datastore")
	cmd.Flags().BoolVar(&staged, "staged", false, "take staged policies for being in force")
	cmd.Flags().BoolVar(&live, "live", false, "send packets, as netctl trace does")
	cmd.Flags().StringVar(&junit, "junit", "", "`file` to write a JUnit report to")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if live && (offline || staged || len(manifests) > 0) {
			return usage("--live: packets meet the rules that are in force: leave --offline, --staged and --manifest out")
		}
		expected, err := a.readExpectations(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if live {
			var results []testResult
			for _, e := range expected {
				results = append(results, e.send(cmd.Context(), a))
			}
			return a.showResults(*f, results, junit)
		}
		s, err := a.settings()
		if err != nil {
			return err
		}
		view, err := a.testView(cmd.Context(), manifests, offline)
		if err != nil {
			return err
		}
		for _, p := range view.Policies() {
			if !staged || !p.Spec.Staged {
				continue
			}
			if err := overlay(view, inForce(p)); err != nil {
				return err
			}
		}
		var results []testResult
		for _, e := range expected {
			results = append(results, e.hold(cmd.Context(), &explainer{settings: s, view: view, sourcePort: defaultSourcePort}))
		}
		return a.showResults(*f, results, junit)
	}
	return cmd
}

// expectation is one line of a test.
type expectation struct {
	text    string
	line    int
	allowed bool
	words   []string // SRC DST [PROTO [PORT]]
}

func (a *app) readExpectations(ctx context.Context, file string) (list []expectation, err error) {
	raw, err := readInput(ctx, a.in, file, maxManifest)
	if err != nil {
		return nil, err
	}
	for i, line := range strings.Split(string(raw), "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		action := datastore.Action(words[0])
		if n := len(words) - 1; action != datastore.Allow && action != datastore.Deny || n < 2 || n > 4 {
			return nil, fmt.Errorf("%s:%d: %q is not (allow|deny) SRC DST [PROTO [PORT]]: %w", inputName(file), i+1, strings.Join(words, " "), datastore.ErrInvalid)
		}
		list = append(list, expectation{strings.Join(words, " "), i + 1, action == datastore.Allow, words[1:]})
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: no expectation in it", inputName(file))
	}
	return list, nil
}

// testView is what the datastore has, with the objects of manifests.
func (a *app) testView(ctx context.Context, manifests []string, offline bool) (*datastore.View, error) {
	view := datastore.NewView()
	if !offline {
		var err error
		if view, err = a.view(ctx, explainKinds()...); err != nil {
			return nil, err
		}
	}
	for _, file := range manifests {
		list, err := a.readManifests(ctx, file)
		if err != nil {
			return nil, err
		}
		for _, m := range list {
			if err := overlay(view, m.object); err != nil {
				return nil, fmt.Errorf("%s%s: %w", m.where(), label(m.object), err)
			}
		}
	}
	return view, nil
}

// overlay puts an object into a view.
func overlay(view *datastore.View, o datastore.Object) error {
	key, err := datastore.KeyOf(o)
	if err != nil {
		return err
	}
	value, err := datastore.Encode(o)
	if err != nil {
		return err
	}
	_, err = view.Apply(datastore.Entry{Key: key, Value: value, Revision: view.Revision() + 1})
	return err
}

// testResult is what became of an expectation.
type testResult struct {
	Line        int    `json:"line"`
	Expectation string `json:"expectation"`
	Passed      bool   `json:"passed"`
	// Got is the verdict; Why is which rules decide; Error is why nobody can tell.
	Got   verdict `json:"got,omitempty"`
	Why   string  `json:"why,omitempty"`
	Error string  `json:"error,omitempty"`
}

// hold is what the rules say beside what is expected of them.
func (e expectation) hold(ctx context.Context, x *explainer) testResult {
	out := testResult{Line: e.line, Expectation: e.text}
	got, err := x.answer(ctx, e.words)
	if err != nil {
		out.Error = oneLine(err)
		return out
	}
	out.Got = got.Verdict
	out.Passed = got.Verdict == verdictAllowed && e.allowed || got.Verdict == verdictDenied && !e.allowed
	var why []string
	for _, f := range got.Flows {
		if f.Allowed == e.allowed && !out.Passed {
			continue // that is not why
		}
		for _, s := range f.Sides {
			if s.Allowed == f.Allowed {
				text := strings.TrimSpace(s.text(false, ""))
				if len(got.Flows) > 1 {
					text = f.String() + ": " + text
				}
				why = append(why, text)
			}
		}
	}
	out.Why = strings.Join(why, "; ")
	return out
}

// send is what becomes of a packet beside what is expected of it.
func (e expectation) send(ctx context.Context, a *app) testResult {
	out := testResult{Line: e.line, Expectation: e.text}
	t, err := a.trace(ctx, e.words)
	switch {
	case err != nil:
		out.Error = oneLine(err)
	case t.Verdict == traceUnknown:
		out.Error = t.End
	default:
		out.Got, out.Why = verdictDenied, t.End
		if t.Verdict == traceArrived {
			out.Got = verdictAllowed
		}
		out.Passed = e.allowed == (out.Got == verdictAllowed)
	}
	return out
}

func (a *app) showResults(f format, results []testResult, junit string) error {
	var wrong, unknown int
	var b strings.Builder
	for _, r := range results {
		switch {
		case r.Error != "":
			unknown++
			fmt.Fprintf(&b, "?      %s: %s\n", r.Expectation, r.Error)
		case r.Passed:
			fmt.Fprintf(&b, "ok     %s\n", r.Expectation)
		default:
			wrong++
			fmt.Fprintf(&b, "WRONG  %s: %s; %s\n", r.Expectation, r.Got, r.Why)
		}
	}
	if junit != "" {
		report, err := junitReport(results)
		if err != nil {
			return err
		}
		if err := datastore.WriteFile(junit, report, datastore.FileOptions{Mode: 0o644}); err != nil {
			return err
		}
	}
	show := func() error { return a.print(b.String()) }
	if f.manifests() {
		show = func() error { return a.showPlain(f, results) }
	}
	if err := show(); err != nil {
		return err
	}
	switch {
	case unknown > 0:
		return fmt.Errorf("%d of %d could not be told", unknown, len(results))
	case wrong > 0:
		return errNo
	}
	return nil
}

// junitReport is the results as build servers read them.
func junitReport(results []testResult) ([]byte, error) {
	type failure struct {
		Message string `xml:"message,attr"`
	}
	type testCase struct {
		Name    string   `xml:"name,attr"`
		Class   string   `xml:"classname,attr"`
		Failure *failure `xml:"failure,omitempty"`
		Error   *failure `xml:"error,omitempty"`
	}
	suite := struct {
		XMLName  xml.Name   `xml:"testsuite"`
		Name     string     `xml:"name,attr"`
		Tests    int        `xml:"tests,attr"`
		Failures int        `xml:"failures,attr"`
		Errors   int        `xml:"errors,attr"`
		Cases    []testCase `xml:"testcase"`
	}{Name: "netctl policy", Tests: len(results)}
	for _, r := range results {
		c := testCase{Name: r.Expectation, Class: "policy"}
		switch {
		case r.Error != "":
			suite.Errors++
			c.Error = &failure{r.Error}
		case !r.Passed:
			suite.Failures++
			c.Failure = &failure{string(r.Got) + "; " + r.Why}
		}
		suite.Cases = append(suite.Cases, c)
	}
	body, err := xml.MarshalIndent(suite, "", "  ")
	if err != nil {
		return nil, errors.Join(errors.New("JUnit report"), err)
	}
	return append([]byte(xml.Header), append(body, '\n')...), nil
}
