package main

import (
	"fmt"
	"slices"
	"strings"

	pb "github.com/portd/portd/proto/portd/v1"
)

// A block is all that the registry says of one service, or of the ports of nobody's.
type block struct {
	title  string
	fields []field
}

// A field is a column of the registry, with its values: one where all entries of a service agree.
type field struct {
	label  string
	values []value
}

type value struct {
	lines []string
	of    []string // the entries that it is of, where that are not all: "tcp", "443/tcp", "no port"
}

// columns are what the lines of whois leave out, as people call it.
var columns = []struct {
	label string
	cell  func(*pb.ServiceEntry) []string
}{
	{"assignee", func(e *pb.ServiceEntry) []string { return brackets(e.GetAssignee()) }},
	{"contact", func(e *pb.ServiceEntry) []string { return brackets(e.GetContact()) }},
	{"registered", func(e *pb.ServiceEntry) []string { return cell(e.GetRegistrationDate()) }},
	{"modified", func(e *pb.ServiceEntry) []string { return cell(e.GetModificationDate()) }},
	{"added here", addedHere},
	{"reference", func(e *pb.ServiceEntry) []string { return brackets(e.GetReference()) }},
	{"service code", func(e *pb.ServiceEntry) []string { return serviceCode(e.GetServiceCode()) }},
	{"unauthorized use", func(e *pb.ServiceEntry) []string { return cell(e.GetUnauthorizedUse()) }},
	{"notes", func(e *pb.ServiceEntry) []string { return cell(e.GetNotes()) }},
}

// detailsOf is a block per service of an answer, and one per status of its ports that says more than that. Unless all are
// wanted there are none where the answer has several services; an alias is none beside the service that replaces it.
func detailsOf(l *pb.ServiceLookup, q question, all bool) (blocks []*block) {
	var names []string
	groups := map[string][]*pb.ServiceEntry{}
	add := func(title string, e *pb.ServiceEntry) {
		if groups[title] == nil {
			names = append(names, title)
		}
		groups[title] = append(groups[title], e)
	}
	services, alike := map[string]bool{}, map[recordKey]int{}
	for _, e := range l.GetEntries() {
		alike[recordKey{keyOf(e), e.GetProtocol()}]++
	}
	twins := false
	for _, e := range l.GetEntries() {
		isAlias := e.GetAliasOf() != "" && slices.ContainsFunc(l.GetEntries(), func(o *pb.ServiceEntry) bool { return o.GetName() == e.GetAliasOf() })
		title := titleOf(e)
		if e.GetName() != "" && alike[recordKey{keyOf(e), e.GetProtocol()}] > 1 { // two have taken one name
			title += ", " + describe(e)
			twins = true
		}
		switch {
		case isAlias && !all:
		case e.GetName() == "" && q.isRange() && e.GetNotes() == "":
		default:
			if e.GetName() != "" {
				services[titleOf(e)] = true
			}
			add(title, e)
		}
	}
	if len(services) > 1 && !all {
		return nil
	}
	for _, title := range names {
		if b := blockOf(title, groups[title]); len(b.fields) > 0 {
			blocks = append(blocks, b)
		}
	}
	if len(blocks) == 1 && !twins {
		blocks[0].title = "" // there is no other that it might be of
	}
	return blocks
}

// A recordKey is what tells records apart but for what they say.
type recordKey struct {
	lineKey
	proto pb.Protocol
}

// titleOf is the name of a service, or the ports where they have none.
func titleOf(e *pb.ServiceEntry) string {
	switch {
	case e.GetName() == "":
		return portsText(e.GetPorts())
	case isOwn(e):
		return e.GetName() + " (this host's own)"
	}
	return e.GetName()
}

func blockOf(title string, entries []*pb.ServiceEntry) *block {
	if e := entries[0]; e.GetName() == "" && len(entries) == 1 {
		title = placeOf(e)
	}
	b := &block{title: title}
	for _, col := range columns {
		f, have := field{label: col.label}, 0
		for _, e := range entries {
			lines := col.cell(e)
			if len(lines) == 0 {
				continue
			}
			have++
			i := slices.IndexFunc(f.values, func(v value) bool { return slices.Equal(v.lines, lines) })
			if i < 0 {
				i = len(f.values)
				f.values = append(f.values, value{lines: lines})
			}
			f.values[i].of = append(f.values[i].of, placeAmong(e, entries))
			f.values[i].of = slices.Compact(f.values[i].of)
		}
		switch {
		case len(f.values) == 0:
			continue
		case len(f.values) == 1 && have == len(entries):
			f.values[0].of = nil
		}
		b.fields = append(b.fields, f)
	}
	return b
}

// placeAmong tells an entry from the others of its service: by its protocol, and by its ports where they differ.
func placeAmong(e *pb.ServiceEntry, entries []*pb.ServiceEntry) string {
	if slices.ContainsFunc(entries, func(o *pb.ServiceEntry) bool { return !samePorts(o, e) }) {
		return placeOf(e)
	}
	return protoWord(e.GetProtocol())
}

func samePorts(a, b *pb.ServiceEntry) bool {
	return (a.GetPorts() == nil) == (b.GetPorts() == nil) && portsText(a.GetPorts()) == portsText(b.GetPorts())
}

// placeOf is the ports of an entry with its protocol, if it has one.
func placeOf(e *pb.ServiceEntry) string {
	switch {
	case e.GetPorts() == nil:
		return "no port"
	case e.GetProtocol() == pb.Protocol_PROTOCOL_UNSPECIFIED:
		return portsText(e.GetPorts())
	}
	return portsText(e.GetPorts()) + "/" + protoWord(e.GetProtocol())
}

// printBlocks prints details under the lines that they belong to.
func (c *ctl) printBlocks(blocks []*block) {
	labels := 0
	for _, b := range blocks {
		for _, f := range b.fields {
			labels = max(labels, len(f.label))
		}
	}
	width := c.width() - labels - 4
	for _, b := range blocks {
		if b.title != "" {
			fmt.Fprintf(c.out, "%s:\n", printable(b.title))
		}
		for _, f := range b.fields {
			label := f.label
			for _, v := range f.values {
				for _, l := range v.text() {
					for _, part := range wrap(printable(l), width) {
						fmt.Fprintf(c.out, "  %-*s  %s\n", labels, label, part)
						label = ""
					}
				}
			}
		}
	}
}

// text is the lines of a value with what it is of: after a short one, and before a long one.
func (v value) text() []string {
	of := strings.Join(v.of, ", ")
	switch {
	case of == "":
		return v.lines
	case len(v.lines) == 1:
		return []string{v.lines[0] + " (" + of + ")"}
	}
	return append([]string{of + ":"}, v.lines...)
}
