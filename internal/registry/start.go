package registry

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
)

// restoreAll restores every reservation, and adds to the commit what is other than it was, in the order in which they were made. As
// many at a time as there are processors: most of it is the kernel's work, and one whose port somebody else has, which takes long
// to find out about, keeps none of the others waiting.
func (r *Registry) restoreAll(ctx context.Context, into *commit) {
	type outcome struct {
		after *Reservation
		ev    Event
	}
	outcomes := make([]outcome, len(r.order))
	var next atomic.Int64
	var all sync.WaitGroup
	for range max(runtime.GOMAXPROCS(0), 2) {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(outcomes) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if after, ev, changed := r.restore(ctx, r.order[i].res, true); changed {
					outcomes[i] = outcome{after, ev}
				}
			}
		})
	}
	all.Wait()
	for i, o := range outcomes {
		if e := r.order[i]; o.after != nil {
			into.update(e, o.after, o.ev)
			into.apply = append(into.apply, func() { r.noteLost(e) })
		}
	}
}
