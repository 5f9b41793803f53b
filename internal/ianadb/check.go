package ianadb

import (
	"fmt"
	"strings"
)

// A collector gathers the records that a parser reads, each with its line, and refuses what no registry has: a record
// twice, and more than could be one. What it holds stays small whatever the file says.
type collector struct {
	entries []Entry
	lines   map[identity]int
	held    int // ports, once for each record that holds them
}

const (
	maxRecords = 100_000 // seven times as many as in 2026
	maxHeld    = maxLists - 2 - maxRecords
)

// An identity is what the registry has once: a name on its ports of a protocol, or without a name the ports alone.
type identity struct {
	name        string // lower case
	first, last uint16
	protocol    Protocol
	portless    bool
	description string // of a name without a port: rdp stands for two services
}

func (e *Entry) identity() identity {
	id := identity{name: lowerName(e.Name), first: e.First, last: e.Last, protocol: e.Protocol, portless: !e.HasPort()}
	if id.portless {
		id.description = e.Description
	}
	return id
}

func (c *collector) add(e Entry, line int) error {
	if c.lines == nil {
		c.lines = make(map[identity]int)
	}
	id := e.identity()
	if before, twice := c.lines[id]; twice {
		return fmt.Errorf("line %d: %q is a duplicate of line %d", line, e.label(), before)
	}
	if e.HasPort() {
		c.held += int(e.Last-e.First) + 1
	}
	switch {
	case len(c.entries) == maxRecords:
		return fmt.Errorf("line %d: more than %d records, which is no registry", line, maxRecords)
	case c.held > maxHeld:
		return fmt.Errorf("line %d: %q is one wide range too many: the records so far hold %d ports, want at most %d", line, e.label(), c.held, maxHeld)
	}
	c.lines[id] = line
	c.entries = append(c.entries, e)
	return nil
}

// label names a record: http 80/tcp, 6005-6010, 1password.
func (e *Entry) label() string {
	label := strings.TrimSpace(e.Name + " " + e.Port)
	if e.Protocol != AnyProtocol {
		label += "/" + e.Protocol.String()
	}
	return label
}
