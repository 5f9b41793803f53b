package policyfile

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// A reader walks a document and notes all that is wrong with it.
type reader struct {
	file string
	errs []*Error
}

func (r *reader) wrong(at *yaml.Node, field, format string, args ...any) {
	r.errs = append(r.errs, &Error{File: r.file, Line: at.Line, Field: field, Reason: fmt.Sprintf(format, args...)})
}

// what names a node's kind for people.
func what(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	if isNull(n) {
		return "nothing"
	}
	return strconv.Quote(shorten(n.Value))
}

// shorten keeps what somebody wrote from filling the screen.
func shorten(s string) string {
	if len(s) > 60 {
		s = strings.ToValidUTF8(s[:60], "") + "…"
	}
	return s
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// behind is what an alias stands for.
func behind(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias // never an alias again: those have no anchor
	}
	return n
}

// under is the path of a key.
func under(field, key string) string {
	if field == "" {
		return key
	}
	return field + "." + key
}

// mapping calls f for each pair of a mapping, each key once. A key without a value is an empty mapping, as it is where
// everything below it is commented out.
func (r *reader) mapping(n *yaml.Node, field string, f func(key string, at, value *yaml.Node)) {
	if n == nil || isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		if field == "" {
			r.wrong(n, "", "is %s; a policy file has keys with values, like \"pools:\"", what(n))
		} else {
			r.wrong(n, field, "is %s; keys with values are wanted", what(n))
		}
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := behind(n.Content[i]), behind(n.Content[i+1])
		switch line, again := seen[k.Value]; {
		case k.Kind != yaml.ScalarNode:
			r.wrong(n.Content[i], field, "has %s for a key; a word is wanted", what(k))
		case again:
			r.wrong(n.Content[i], under(field, shorten(k.Value)), "is there twice; first in line %d", line)
		default:
			seen[k.Value] = n.Content[i].Line
			f(k.Value, n.Content[i], v)
		}
	}
}

// unknown notes a key that nobody knows.
func (r *reader) unknown(at *yaml.Node, field, key string, known ...string) {
	r.wrong(at, under(field, shorten(key)), "is unknown; known are %s", strings.Join(known, ", "))
}

// words are the items of a list, or of one text with commas between them, each with its place.
func (r *reader) words(n *yaml.Node, field, like string) (words []word) {
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = n.Content
	}
	for _, item := range items {
		v := behind(item)
		if v.Kind != yaml.ScalarNode || !slices.Contains([]string{"!!str", "!!int"}, v.ShortTag()) {
			r.wrong(item, field, "is %s; wanted is something like %s", what(v), like)
			continue
		}
		for w := range strings.SplitSeq(v.Value, ",") {
			words = append(words, word{strings.TrimSpace(w), item})
		}
	}
	return words
}

type word struct {
	text string
	at   *yaml.Node
}

// duration reads a length of time of at most most; a bare number but 0 has no unit and could be anything.
func (r *reader) duration(n *yaml.Node, field string, least, most time.Duration) time.Duration {
	d, err := time.ParseDuration(n.Value)
	switch {
	case n.Kind != yaml.ScalarNode || err != nil:
		r.wrong(n, field, "is %s; wanted is a length of time with its unit, like 30s, 5m or 720h", what(n))
		return 0
	case d < least || d > most:
		r.wrong(n, field, "%s is not allowed; allowed are %v to %v", n.Value, least, most)
		return 0
	}
	return d
}

// number reads a whole number.
func (r *reader) number(n *yaml.Node, field string, least, most int) int {
	var v int
	switch err := n.Decode(&v); {
	case err != nil || isNull(n):
		r.wrong(n, field, "is %s; a whole number is wanted", what(n))
		return 0
	case v < least || v > most:
		r.wrong(n, field, "%d is not allowed; allowed are %d to %d", v, least, most)
		return 0
	}
	return v
}
