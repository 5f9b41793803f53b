package services

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

var matchKinds = [...]pb.MatchKind{
	ianadb.ExactName:  pb.MatchKind_MATCH_KIND_NAME,
	ianadb.NamePrefix: pb.MatchKind_MATCH_KIND_NAME_PREFIX,
	ianadb.WholeWord:  pb.MatchKind_MATCH_KIND_WORD,
	ianadb.Substring:  pb.MatchKind_MATCH_KIND_SUBSTRING,
}

// Search gives a page of the services in which all words of the query occur, or as many as in any, the best first. None is no
// error. Where entries are long, a page has fewer than were asked for.
func Search(s *registry.Services, req *pb.SearchServicesRequest) (*pb.SearchServicesResponse, error) {
	p, err := ToProtocol("protocol", req.GetProtocol())
	if err != nil {
		return nil, err
	}
	if err := ianadb.CheckSearch(req.GetQuery()); err != nil {
		return nil, invalid("query", "%v", err)
	}
	at, err := newPage(s, fmt.Sprintf("search %d %s", p, req.GetQuery()), req.GetPageToken(), req.GetPageSize(), 50)
	if err != nil {
		return nil, err
	}
	matches, total := s.Search(req.GetQuery(), p, at.skip, at.size)
	out := &pb.SearchServicesResponse{Total: uint32(total), RegistryDate: s.Current.Date}
	size := 0
	for _, m := range matches {
		found := &pb.ServiceMatch{Kind: matchKinds[m.Kind]}
		for _, r := range m.Records {
			found.Entries = append(found.Entries, Entry(s, r))
		}
		if size += proto.Size(found); size > maxAnswer && len(out.Matches) > 0 {
			break
		}
		out.MissingWords = uint32(m.Missing)
		out.Matches = append(out.Matches, found)
	}
	if end := at.skip + len(out.Matches); len(out.Matches) > 0 && end < total {
		out.NextPageToken = at.next(end)
	}
	return out, nil
}
