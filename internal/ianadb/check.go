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
	held    int             // ports, once for each record that holds them
	onPort  [1 << 16]uint16 // records that hold a port
	named   map[string]int  // records of a name, in lower case
}

const (
	maxRecords = 100_000 // seven times as many as in 2026
	maxHeld    = maxLists - 2 - maxRecords
	maxAlike   = 1000 // records of one name, or on one port: lookups walk over them. In 2026 they were six and seven
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
		c.lines, c.named = make(map[identity]int), make(map[string]int)
	}
	id := e.identity()
	if before, twice := c.lines[id]; twice {
		return fmt.Errorf("line %d: %q is a duplicate of line %d", line, e.label(), before)
	}
	if len(c.entries) == maxRecords {
		return fmt.Errorf("line %d: more than %d records, which is no registry", line, maxRecords)
	}
	if e.Name != "" {
		if c.named[id.name]++; c.named[id.name] > maxAlike {
			return fmt.Errorf("line %d: more than %d records of the name %q, which is no registry", line, maxAlike, e.Name)
		}
	}
	if e.HasPort() {
		if c.held += int(e.Last-e.First) + 1; c.held > maxHeld {
			return fmt.Errorf("line %d: %q is one wide range too many: the records so far hold %d ports, want at most %d",
				line, e.label(), c.held, maxHeld)
		}
		for port := int(e.First); port <= int(e.Last); port++ {
			if c.onPort[port]++; c.onPort[port] > maxAlike {
				return fmt.Errorf("line %d: more than %d records that hold port %d, which is no registry", line, maxAlike, port)
			}
		}
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
