package ianadb

import "slices"

// Free returns the longest possible runs of ports in a range that are unassigned for each of some protocols, ascending.
// No protocol, or AnyProtocol, means all of them.
func (d Directory) Free(within Range, protocols ...Protocol) []Range {
	if len(protocols) == 0 || slices.Contains(protocols, AnyProtocol) {
		protocols = []Protocol{TCP, UDP, SCTP, DCCP}
	}
	var runs []Range
	open := false
	for port := int(within.First); port <= int(within.Last); port++ {
		free := true
		for _, p := range protocols {
			free = free && d.Unassigned(uint16(port), p)
		}
		switch {
		case free && open:
			runs[len(runs)-1].Last = uint16(port)
		case free:
			runs = append(runs, Range{uint16(port), uint16(port)})
		}
		open = free
	}
	return runs
}
