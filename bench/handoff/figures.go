package main

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"text/tabwriter"
)

// A figure compares two visits of the same round.
type figure struct {
	name       string
	of, beside visit
	ratio      func(of, beside result) float64
	pass, aim  float64
	less       bool // is better
}

func rate(of, beside result) float64 { return of.rate / beside.rate }
func p50(of, beside result) float64  { return float64(of.p50) / float64(beside.p50) }
func p99(of, beside result) float64  { return float64(of.p99) / float64(beside.p99) }
func own(of, beside result) float64  { return float64(of.first) / float64(beside.first) }
func cpu(of, beside result) float64  { return float64(of.all) / float64(beside.all) }

var figures = []figure{
	{"echo, Go worker / Go direct", visit{"Go worker", 64}, visit{"Go direct", 64}, rate, 0.80, 0.90, false},
	{"the same, GOMAXPROCS=1 in the worker", visit{"Go worker, 1 P", 64}, visit{"Go direct", 64}, rate, 0, 0, false},
	{"the same, processor time", visit{"Go worker", 64}, visit{"Go direct", 64}, cpu, 0, 0, true},
	{"net/http worker / http.Server direct", visit{"http worker", 64}, visit{"http direct", 64}, rate, 0.87, 0.95, false},
	{"the same, GOMAXPROCS=1 in the worker", visit{"http worker, 1 P", 64}, visit{"http direct", 64}, rate, 0, 0, false},
	{"the same, p99", visit{"http worker, 1 P", 64}, visit{"http direct", 64}, p99, 1.0, 0.7, true},
	{"C worker / C direct", visit{"C worker", 64}, visit{"C direct", 64}, rate, 0.92, 0.97, false},
	{"C worker of a C daemon / C direct", visit{"C daemon, C worker", 64}, visit{"C direct", 64}, rate, 0, 0, false},
	{"echo, Go worker / HAProxy before Go", visit{"Go worker", 64}, visit{"HAProxy, Go", 64}, rate, 1.7, 2.3, false},
	{"http worker / HAProxy before http.Server", visit{"http worker", 64}, visit{"HAProxy, http", 64}, rate, 1.6, 1.8, false},
	{"one at a time, p50, Go worker / C direct", visit{"Go worker", 1}, visit{"C direct", 1}, p50, 1.35, 1.22, true},
	{"one at a time, p50, C worker / C direct", visit{"C worker", 1}, visit{"C direct", 1}, p50, 1.35, 1.22, true},
	{"one at a time, p50, Go direct / C direct", visit{"Go direct", 1}, visit{"C direct", 1}, p50, 0, 0, true},
	{"512 at a time, Go worker / Go direct", visit{"Go worker", 512}, visit{"Go direct", 512}, rate, 0.78, 0.88, false},
	{"own processor time, portd / C daemon, C worker", visit{"C worker", 64}, visit{"C daemon, C worker", 64}, own, 1.25, 1.1, true},
	{"the same, Go worker", visit{"Go worker", 64}, visit{"C daemon, Go worker", 64}, own, 0, 0, true},
}

// measure runs all rounds and prints what they found.
func measure(ctx context.Context, o options, out io.Writer) error {
	only, err := regexp.Compile(o.only)
	if err != nil {
		return err
	}
	s, err := newStage(ctx, o)
	if err != nil {
		return err
	}
	defer s.close()

	var wanted []figure
	var visits []visit
	for _, f := range figures {
		if only.MatchString(f.name) && s.servers[f.of.server] != nil && s.servers[f.beside.server] != nil {
			wanted = append(wanted, f)
			for _, v := range []visit{f.of, f.beside} {
				if !slices.Contains(visits, v) {
					visits = append(visits, v)
				}
			}
		}
	}
	results, err := s.rounds(ctx, visits)
	if err != nil {
		return err
	}
	s.printVisits(out, visits, results)
	printFigures(out, wanted, results)
	if only.MatchString("lost per SIGKILL") {
		if err := s.kills(ctx, out); err != nil {
			return err
		}
	}
	if only.MatchString("workers attached") {
		return s.crowd(ctx, out)
	}
	return nil
}

// rounds visits every server once a round, each round beginning with another one; a first, cold round does not count.
func (s *stage) rounds(ctx context.Context, visits []visit) (map[visit][]result, error) {
	all := map[visit][]result{}
	for round := range s.o.rounds + 1 {
		for i := range visits {
			v := visits[(i+round)%len(visits)]
			r, err := s.load(ctx, v, s.o.length)
			if err != nil {
				return nil, err
			}
			if round > 0 {
				all[v] = append(all[v], r)
			}
		}
	}
	return all, nil
}

func (s *stage) printVisits(out io.Writer, visits []visit, results map[visit][]result) {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "server\tat a time\tconn/s\tp50 µs\tp99 µs\tµs of processor\tof portd, daemon or proxy\tfailed")
	for _, v := range visits {
		r := results[v]
		failed := 0
		for _, one := range r {
			failed += one.failed
		}
		first := "-"
		if len(s.servers[v.server].processes) > 1 {
			first = fmt.Sprintf("%.1f", median(r, func(r result) float64 { return float64(r.first) / 1e3 }))
		}
		fmt.Fprintf(t, "%s\t%d\t%.0f\t%.0f\t%.0f\t%.1f\t%s\t%d\n", v.server, v.atATime,
			median(r, func(r result) float64 { return r.rate }),
			median(r, func(r result) float64 { return float64(r.p50) / 1e3 }),
			median(r, func(r result) float64 { return float64(r.p99) / 1e3 }),
			median(r, func(r result) float64 { return float64(r.all) / 1e3 }), first, failed)
	}
	_ = t.Flush()
	fmt.Fprintln(out)
}

func printFigures(out io.Writer, wanted []figure, results map[visit][]result) {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "figure\tmedian\tfrom\tto\tpass\taim\t")
	for _, f := range wanted {
		ratios := make([]float64, len(results[f.of]))
		for i := range ratios {
			ratios[i] = f.ratio(results[f.of][i], results[f.beside][i])
		}
		slices.Sort(ratios)
		m := ratios[len(ratios)/2]
		fmt.Fprintf(t, "%s\t%.2f\t%.2f\t%.2f\t", f.name, m, ratios[0], ratios[len(ratios)-1])
		if f.pass == 0 {
			fmt.Fprint(t, "\t\t\n")
			continue
		}
		fmt.Fprintf(t, "%.2f\t%.2f\t%s\n", f.pass, f.aim, verdict(m, f.pass, f.aim, f.less))
	}
	_ = t.Flush()
}

func verdict(got, pass, aim float64, less bool) string {
	if less {
		got, pass, aim = -got, -pass, -aim
	}
	switch {
	case got >= aim:
		return "aim reached"
	case got >= pass:
		return "pass"
	}
	return "FALLS SHORT"
}

func median[T any](all []T, of func(T) float64) float64 {
	v := make([]float64, len(all))
	for i := range all {
		v[i] = of(all[i])
	}
	slices.Sort(v)
	return v[len(v)/2]
}
