// Package policyfile reads what the administrator decides: a YAML file of pools and of how much history is kept. See
// portd-policy(5).
//
// It is strict, for a word that is passed over in silence is a rule that somebody believes in: each thing that portd does not
// know, or that makes no sense, is an error with its line, and all of them are said at once.
package policyfile

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/portd/portd/internal/registry"
)

// maxSize bounds a file, in bytes: some thousand times a long one.
const maxSize = 1 << 20

// maxErrors is how many errors of a file are said; a file that is not meant for portd at all has one a line.
const maxErrors = 20

// An Error is one thing that is wrong in a policy file.
type Error struct {
	File   string
	Line   int    // from 1 on; 0 where it is not known
	Field  string // "pools.ci.strategy"; empty where the text is not YAML
	Reason string // what is wrong and what is allowed
}

func (e *Error) Error() string {
	s := e.File
	if e.Line > 0 {
		s += ":" + strconv.Itoa(e.Line)
	}
	if e.Field != "" {
		s += ": " + e.Field
	}
	return s + ": " + e.Reason
}

// Load reads the file at path. Where it cannot be read the error is that of the file system; where it is wrong it is as
// Parse has it.
func Load(path string) (registry.Settings, error) {
	f, err := os.Open(path)
	if err != nil {
		return registry.Settings{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return registry.Settings{}, err
	}
	return Parse(path, text)
}

// Parse reads the text of a policy file; file is its name in errors. The error is an *Error for each thing that is wrong,
// joined, in the order of the lines. An empty text is the zero Settings.
func Parse(file string, text []byte) (registry.Settings, error) {
	r := &reader{file: file}
	if len(text) > maxSize {
		return registry.Settings{}, &Error{File: file, Reason: fmt.Sprintf("has more than %d bytes; a policy file has some hundred", maxSize)}
	}
	s := r.settings(r.document(string(text)))
	if len(r.errs) == 0 {
		return s, nil
	}
	slices.SortStableFunc(r.errs, func(a, b *Error) int { return cmp.Compare(a.Line, b.Line) })
	var all []error
	for i, e := range r.errs {
		if i == maxErrors {
			all = append(all, &Error{File: file, Line: e.Line, Reason: fmt.Sprintf("there are %d more errors from here on", len(r.errs)-i)})
			break
		}
		all = append(all, e)
	}
	return registry.Settings{}, errors.Join(all...)
}

// document is the one YAML document of text; nil where there is none, or where it is wrong.
func (r *reader) document(text string) *yaml.Node {
	dec := yaml.NewDecoder(strings.NewReader(text))
	var doc, next yaml.Node
	if err := dec.Decode(&doc); err != nil {
		r.syntax(err)
		return nil
	}
	switch err := dec.Decode(&next); {
	case err == nil:
		r.wrong(&next, "", "a second document begins here; a policy file is one")
	default:
		r.syntax(err)
	}
	if len(doc.Content) == 0 {
		return nil
	}
	return doc.Content[0]
}

// inLine parts the YAML parser's "yaml: line 3: did not find expected key". It says no line where that is the first one.
var inLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// syntax notes what is not YAML. The end of the text is no error.
func (r *reader) syntax(err error) {
	if errors.Is(err, io.EOF) {
		return
	}
	e := &Error{File: r.file, Reason: "is not YAML: " + inLine.ReplaceAllString(err.Error(), "")}
	if m := inLine.FindStringSubmatch(err.Error()); m != nil {
		e.Line, _ = strconv.Atoi(m[1])
	}
	r.errs = append(r.errs, e)
}
