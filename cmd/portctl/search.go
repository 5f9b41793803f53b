package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

const searchHelp = `Search finds services of the IANA registry, and this host's own, by words in their names,
descriptions, assignees and notes, in any order and any case. Where no service has all of
the words, it finds those that have most of them, and says so. The best come first: what
is the name, what begins it, whole words, parts of words.

Without a portd it searches as whois does. Nothing found is exit code 3. With -q the
names alone, and still what they are not: that no portd was asked, that words are
missing, that there are more. With -o json a match on each line, with how well it matches.`

type searchFlags struct {
	protocol string
	limit    int
	limited  bool // on the command line
	all      bool
}

func (c *ctl) searchCommand() *cobra.Command {
	var f searchFlags
	cmd := &cobra.Command{
		Use:   "search WORD…",
		Short: "Find services by words",
		Long:  searchHelp,
		Example: `  portctl search secure shell
  portctl search database --protocol tcp --limit 5
  portctl search -q printer --all`,
		Args:              wants(1, many, "a word to search for"),
		ValidArgsFunction: c.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &pb.SearchServicesRequest{Query: strings.Join(args, " ")}
			switch ok := true; {
			case f.limit < 1:
				return usagef("--limit %d: at least 1 is wanted", f.limit)
			case f.all && cmd.Flags().Changed("limit"):
				return usagef("--all and --limit: it is one or the other")
			case f.protocol != "":
				if req.Protocol, ok = serviceProtocols[strings.ToLower(f.protocol)]; !ok {
					return usagef("--protocol %s: one of tcp, udp, sctp and dccp is wanted", f.protocol)
				}
			}
			f.limited = cmd.Flags().Changed("limit")
			return c.search(cmd.Context(), req, f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.protocol, "protocol", "", "only services of this `protocol`")
	flags.IntVar(&f.limit, "limit", 20, "show at most this many")
	flags.BoolVar(&f.all, "all", false, "show all")
	_ = cmd.RegisterFlagCompletionFunc("protocol", completeProtocols)
	return cmd
}

func (c *ctl) search(ctx context.Context, req *pb.SearchServicesRequest, f searchFlags) error {
	if err := ianadb.CheckSearch(req.GetQuery()); err != nil {
		return usageError(err.Error())
	}
	source := c.openSource(ctx)
	defer source.close()
	most := f.limit
	if f.all {
		most = math.MaxInt
	}
	found, err := searchPages(req, most, func(req *pb.SearchServicesRequest) (*pb.SearchServicesResponse, error) {
		return source.search(ctx, req)
	})
	switch {
	case err != nil:
		return err
	case len(found.GetMatches()) == 0:
		return c.foundNothing(ctx, source, req)
	}
	words := strings.Fields(req.GetQuery())
	if missing := int(found.GetMissingWords()); missing > 0 {
		c.warn("no service has all of %q; these lack %s", strings.Join(words, " "), count(missing, "word"))
	}
	if err := c.printMatches(found.GetMatches(), words); err != nil {
		return err
	}
	if n := len(found.GetMatches()); n < int(found.GetTotal()) {
		tell := c.warn
		if f.limited {
			tell = c.say // it is as was asked
		}
		tell("%d of %d; --all shows the rest", n, found.GetTotal())
	}
	if line := asPorts(words); line != "" {
		c.say("these have it in their texts; for the port: %s", line)
	}
	return nil
}

// searchPages is at most so many matches as one answer.
func searchPages(req *pb.SearchServicesRequest, most int, page func(*pb.SearchServicesRequest) (*pb.SearchServicesResponse, error)) (*pb.SearchServicesResponse, error) {
	var all *pb.SearchServicesResponse
	err := pagesOfOne(func() { all = &pb.SearchServicesResponse{} }, func(token string) (string, error) {
		req.PageToken, req.PageSize = token, int32(min(most-len(all.GetMatches()), mostOnPage))
		p, err := page(req)
		if err != nil {
			return "", err
		}
		all.Matches = append(all.Matches, p.GetMatches()...)
		all.Total, all.MissingWords = p.GetTotal(), p.GetMissingWords()
		if len(all.GetMatches()) == most {
			return "", nil
		}
		return p.GetNextPageToken(), nil
	})
	return all, err
}

func (c *ctl) printMatches(found []*pb.ServiceMatch, words []string) error {
	seen := map[string]bool{}
	t := c.table()
	for _, m := range found {
		lines := named(m.GetEntries())
		switch {
		case c.json():
			if err := c.printJSON(m); err != nil {
				return err
			}
			continue
		case c.quiet:
			for _, l := range lines {
				if !seen[l.name] {
					seen[l.name] = true
					t.row(l.name)
				}
			}
			continue
		case len(lines) == 0: // only a word on some ports
			lines = []*line{nobodys(m.GetEntries())}
		}
		if where := whereFound(m.GetEntries()[0], words); where != "" {
			lines[0].texts = append(lines[0].texts, where)
		}
		for _, l := range lines {
			t.row(l.cells()...)
		}
	}
	return t.flush()
}

// nobodys is a line of entries without a name.
func nobodys(entries []*pb.ServiceEntry) *line {
	l := &line{ports: entries[0].GetPorts(), own: isOwn(entries[0])}
	for _, e := range entries {
		l.protos = append(l.protos, protoWord(e.GetProtocol()))
	}
	if text := describe(entries[0]); text != "" {
		l.texts = append(l.texts, text)
	}
	return l
}

// whereFound is the part of an entry in which a word is that the line of the entry does not have.
func whereFound(e *pb.ServiceEntry, words []string) string {
	shown := e.GetName() + " " + e.GetDescription()
	for _, word := range words {
		if contains(shown, word) {
			continue
		}
		for _, col := range columns {
			for _, l := range col.cell(e) {
				if contains(l, word) {
					return col.label + ": " + around(l, word, 60)
				}
			}
		}
	}
	return ""
}

// around is at most about most characters of a text, with word among them.
func around(text, word string, most int) string {
	at := strings.Index(strings.ToLower(text), strings.ToLower(word))
	if at+len(word) <= most {
		return shorten(text, most)
	}
	// From a blank a little before the word on. In other alphabets lower case may be of another length.
	from := strings.LastIndexByte(text[:max(0, min(at, len(text))-most/3)], ' ') + 1
	return "…" + shorten(text[from:], most)
}

// A nothingFound is a search that nothing came of.
type nothingFound string

func (e nothingFound) Error() string        { return string(e) }
func (e nothingFound) Is(target error) bool { return target == client.ErrNotFound }

// foundNothing says so, with a search that finds something if there is one.
func (c *ctl) foundNothing(ctx context.Context, s *source, req *pb.SearchServicesRequest) error {
	words := strings.Fields(req.GetQuery())
	text := fmt.Sprintf("no service has %q", strings.Join(words, " "))
	if len(words) > 1 {
		text = fmt.Sprintf("no service has any of %q", strings.Join(words, " "))
	}
	if req.GetProtocol() != 0 {
		text += " for " + protoWord(req.GetProtocol())
	}
	err := nothingFound(text)
	if line := asPorts(words); line != "" {
		return try(err, line)
	}
	for _, others := range c.otherWords(ctx, s, words) {
		page, err2 := s.search(ctx, &pb.SearchServicesRequest{Query: others, Protocol: req.GetProtocol(), PageSize: 1})
		if err2 == nil && page.GetTotal() > 0 {
			return try(err, "portctl search "+shellWords(strings.Fields(others)...))
		}
	}
	return try(err, "portctl search --help")
}

// asPorts is the whois that asks for the same, where the words are ports: a search looks into texts.
func asPorts(words []string) string {
	questions, err := parseQuestions(words, nil)
	if err != nil || slices.ContainsFunc(questions, func(q question) bool { return !q.isPorts() }) {
		return ""
	}
	return "portctl whois " + shellWords(words...)
}

// otherWords are what to search for instead: the same with a name for a word that is like it.
func (c *ctl) otherWords(ctx context.Context, s *source, words []string) (others []string) {
	for i, word := range words {
		if !isName(word) {
			continue
		}
		_, err := s.whois(ctx, question{name: word})
		for _, near := range nearNames(err) {
			changed := slices.Clone(words)
			changed[i] = near
			others = append(others, strings.Join(changed, " "))
		}
	}
	return others
}

func (s *source) search(ctx context.Context, req *pb.SearchServicesRequest) (*pb.SearchServicesResponse, error) {
	return ask(ctx, s, func(ctx context.Context) (*pb.SearchServicesResponse, error) {
		return s.cl.Services.SearchServices(ctx, req)
	}, func() (*pb.SearchServicesResponse, error) {
		return services.Search(s.own, req)
	})
}
