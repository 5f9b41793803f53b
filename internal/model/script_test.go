package model

import (
	"fmt"
	"slices"
	"strings"
)

// A scene is where the daemons are at one moment, the older one first, and whether there is a keeper.
type scene struct {
	older, newer place
	keeper       bool
}

// A blow is that somebody is killed in a scene.
type blow struct {
	scene
	victim string // "older", "newer" or "keeper"
}

func (b blow) String() string {
	s := places[b.older]
	if b.newer != off {
		s += "+" + places[b.newer]
	}
	return b.victim + "@" + s
}

// A script is a way through the model: who is killed when. Between the blows everybody does what he does.
type script []blow

func (s script) String() string {
	var all []string
	for _, b := range s {
		all = append(all, b.String())
	}
	return strings.Join(all, ",")
}

// points are the steps that a daemon tells of (daemon.Config.Step) when it is at a place, and waits at; "" where it need not.
var points = map[place]string{
	opening: "items", loading: "loaded", settling: "workers", serving: "",
	waiting: "", following: "items", claiming: "opened-store", prepared: "yours", relieving: "resumed",
	freezing: "frozen", closed: "closed-store", given: "given", yours: "yours", leaving: "left",
}

// scene is that of a state, if the real programs can be brought to it: nobody is between two of their points, and nothing is under way.
func (c custody) scene() (s scene, ok bool) {
	s.keeper = c.keeper.alive
	if c.excused || c.keeper.alive && (c.keeper.unheard[0] != 0 || c.keeper.gives || !c.keeper.whole) {
		return s, false
	}
	for _, d := range c.daemons {
		_, known := points[d.at]
		switch {
		case d.at == off:
			continue
		case !known || d.in != 0 || d.inside != nothing:
			return s, false
		case d.at == prepared && !d.told:
			return s, false
		}
		switch older := d.at >= freezing || d.at <= serving && s.older == off; {
		case older && s.older == off:
			s.older = d.at
		case older && s.newer == off: // a predecessor that is leaving, and a successor that serves
			s.older, s.newer = max(s.older, d.at), min(s.older, d.at)
		case s.newer == off:
			s.newer = d.at
		default:
			return s, false
		}
	}
	switch {
	case s.older == off, s.newer == waiting && s.older == given: // it takes at once what it is given
		return s, false
	case s.newer == off && s.older >= freezing: // it is on its way back, or out
		return s, false
	}
	return s, true
}

// scripts are all that the model has with at most so many blows, in an order that is always the same.
func scripts(blows uint8) []script {
	sys := custodyBounds{crashes: blows, upgrades: 1}.system()
	type node struct {
		custody
		script string
	}
	byName := map[string]script{"": nil}
	first := sys.start[0]
	first.client = released // changes go on beside it
	queue := []node{{first, ""}}
	seen := map[node]bool{queue[0]: true}
	for len(queue) > 0 {
		n := queue[0]
		queue = queue[1:]
		at, playable := n.scene()
		sys.next(n.custody, func(who, what string, k kind, to custody) {
			next := node{to, n.script}
			if k == fault {
				if !playable || what != "is killed" || to.excused {
					return
				}
				b := blow{at, "keeper"}
				if i := slices.Index(names[:], who); i >= 0 {
					b.victim = "newer"
					if n.daemons[i].at == at.older {
						b.victim = "older"
					}
				}
				before := byName[n.script]
				if len(before) > 0 && before[len(before)-1].victim == "keeper" && (at.older != serving || at.newer != off || !at.keeper) {
					return // what it does without a keeper has no points
				}
				s := append(slices.Clone(before), b)
				next.script = s.String()
				byName[next.script] = s
			}
			if !seen[next] {
				seen[next] = true
				queue = append(queue, next)
			}
		})
	}
	delete(byName, "")
	var all []script
	for _, s := range byName {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b script) int { return strings.Compare(fmt.Sprint(len(a), a), fmt.Sprint(len(b), b)) })
	return all
}
