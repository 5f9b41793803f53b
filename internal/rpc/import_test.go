package rpc_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/portd/portd/internal/ianadb"
	pb "github.com/portd/portd/proto/portd/v1"
)

// edition is IANA's file as portd was built with it, and a next one, in which port 8 is assigned and rje has another name.
func edition(t testing.TB) (this, next []byte) {
	t.Helper()
	this, err := os.ReadFile("../ianadb/service-names-port-numbers.csv")
	if err != nil {
		t.Fatal(err)
	}
	next = bytes.Replace(this, []byte(",8,tcp,Unassigned,"), []byte("newname,8,tcp,New,"), 1)
	next = bytes.Replace(next, []byte("rje,5,tcp,"), []byte("remote-jobs,5,tcp,"), 1)
	return this, next
}

// long is a registry without a fault that is more than portd takes.
func long(header []byte) []byte {
	file := append(bytes.Clone(header), '\n')
	for n := 0; len(file) <= ianadb.MaxFile; n++ {
		file = fmt.Appendf(file, "x-%d,,tcp,%s,,,,,,,,\r\n", n, strings.Repeat("x", 1000))
	}
	return file
}

// send sends these messages as a stream of pb.ImportServicesRequest and returns the answer.
func send(ctx context.Context, services pb.ServiceRegistryServiceClient, parts ...any) (*pb.ServiceImport, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := services.ImportServices(ctx)
	if err != nil {
		return nil, err
	}
	for _, part := range parts {
		if err := stream.Send(request(part)); err != nil {
			break // portd has answered
		}
	}
	resp, err := stream.CloseAndRecv()
	return resp.GetImport(), err
}

func request(part any) *pb.ImportServicesRequest {
	if opt, ok := part.(*pb.ImportOptions); ok {
		return &pb.ImportServicesRequest{Part: &pb.ImportServicesRequest_Options{Options: opt}}
	}
	return &pb.ImportServicesRequest{Part: &pb.ImportServicesRequest_Data{Data: part.([]byte)}}
}

// pieces are a file in parts of so many bytes.
func pieces(file []byte, size int) (parts []any) {
	for len(file) > 0 {
		n := min(size, len(file))
		parts = append(parts, file[:n])
		file = file[n:]
	}
	return parts
}

// sendREST is send for a program that speaks JSON.
func sendREST(ctx context.Context, rest rest, parts ...any) (*pb.ServiceImport, error) {
	var body strings.Builder
	for _, part := range parts {
		text, err := protojson.Marshal(request(part))
		if err != nil {
			return nil, err
		}
		body.Write(text)
		body.WriteByte('\n')
	}
	var resp pb.ImportServicesResponse
	err := rest.call(ctx, http.MethodPost, "/v1/services:import", body.String(), &resp)
	return resp.GetImport(), err
}

func (h *host) registry(t *testing.T) *pb.ServiceRegistryStatus {
	t.Helper()
	st, err := pb.NewDaemonServiceClient(h.grpc(t)).GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return st.GetServiceRegistry()
}

// An import by either door is the same, and answers at once; undone it is as it was, and undone again it is there again.
func TestImport(t *testing.T) {
	_, next := edition(t)
	for door, send := range map[string]func(t *testing.T, h *host, parts ...any) (*pb.ServiceImport, error){
		"gRPC": func(t *testing.T, h *host, parts ...any) (*pb.ServiceImport, error) {
			return send(t.Context(), pb.NewServiceRegistryServiceClient(h.grpc(t)), parts...)
		},
		"REST": func(t *testing.T, h *host, parts ...any) (*pb.ServiceImport, error) {
			return sendREST(t.Context(), h.rest(t), parts...)
		},
	} {
		t.Run(door, func(t *testing.T) {
			h := start(t, nil)
			conn := h.grpc(t)
			services := pb.NewServiceRegistryServiceClient(conn)
			watch, err := pb.NewReservationServiceClient(conn).WatchReservations(t.Context(), &pb.WatchReservationsRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := watch.Recv(); err != nil {
				t.Fatal(err)
			}
			if _, err := services.AddServices(t.Context(), &pb.AddServicesRequest{Services: []*pb.ServiceEntry{{
				Name: "mine", Protocol: pb.Protocol_PROTOCOL_TCP, Ports: &pb.PortRange{First: 8},
			}}, Override: true}); err != nil {
				t.Fatal(err)
			}
			before := h.registry(t)
			if before.GetSource() != "embedded" || before.GetHostEntries() != 1 || before.GetPrevious() != nil || before.GetEmbeddedDate() == "" {
				t.Fatalf("before: %v", before)
			}
			opt := &pb.ImportOptions{DryRun: true, Date: "2026-08-24", From: "new.csv", Etag: `"e"`, LastModified: "Mon, 24 Aug 2026 00:00:00 GMT"}
			dry, err := send(t, h, append([]any{opt}, pieces(next, 100_000)...)...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, h.registry(t), protocmp.Transform()); diff != "" || !dry.GetDryRun() {
				t.Fatalf("a dry run has changed something: %s", diff)
			}
			opt.DryRun = false
			did, err := send(t, h, append([]any{opt}, pieces(next, 1<<20)...)...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(dry.GetChanges(), did.GetChanges(), protocmp.Transform()); diff != "" {
				t.Errorf("the dry run said otherwise: %s", diff)
			}
			var changes []string
			for _, c := range did.GetChanges() {
				changes = append(changes, fmt.Sprintf("%s %s %s %d/%s %s %v", strings.TrimPrefix(c.GetKind().String(), "SERVICE_CHANGE_KIND_"),
					c.GetOldName(), c.GetName(), c.GetPorts().GetFirst(), short(c.GetProtocol()), c.GetDescription(), c.GetColumns()))
			}
			want := []string{"RENAMED rje remote-jobs 5/TCP Remote Job Entry []", "ADDED  newname 8/TCP New []"}
			if diff := cmp.Diff(want, changes); diff != "" || did.GetAdded() != 1 || did.GetRenamed() != 1 || did.GetRemoved() != 0 || did.GetChanged() != 0 {
				t.Errorf("%s %v", diff, did)
			}
			if len(did.GetOverridden()) != 1 || !strings.Contains(did.GetOverridden()[0], "newname") {
				t.Errorf("overridden: %q", did.GetOverridden())
			}
			after := h.registry(t)
			if diff := cmp.Diff(did.GetAfter(), after, protocmp.Transform()); diff != "" {
				t.Errorf("status says otherwise: %s", diff)
			}
			if after.GetSource() != "imported" || after.GetDate() != "2026-08-24" || after.GetFrom() != "new.csv" || after.GetEtag() != `"e"` ||
				after.GetImportedBy() != h.me(t) || after.GetImportTime() == nil || after.GetHostEntries() != 1 || after.GetPrevious().GetDigest() != before.GetDigest() {
				t.Errorf("after: %v", after)
			}
			l, err := services.LookupServices(t.Context(), &pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Port{Port: 8}, Protocol: 1})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"mine 8/TCP of " + h.me(t), "newname 8/TCP"}, lines(l.GetLookup().GetEntries())); diff != "" || l.GetLookup().GetRegistrySource() != "imported" {
				t.Error(diff, l)
			}
			again, err := send(t, h, append([]any{opt}, pieces(next, 1<<20)...)...)
			if err != nil || !again.GetUnchanged() {
				t.Errorf("imported again: %v (%v)", again, err)
			}
			for range 2 {
				undone, err := services.UndoImport(t.Context(), &pb.UndoImportRequest{})
				if err != nil {
					t.Fatal(err)
				}
				if undone.GetImport().GetAfter().GetDigest() == undone.GetImport().GetBefore().GetDigest() || undone.GetImport().GetRenamed() != 1 {
					t.Errorf("undone: %v", undone)
				}
			}
			if got := h.registry(t); got.GetDigest() != after.GetDigest() || got.GetFrom() != "new.csv" {
				t.Errorf("undone twice: %v", got)
			}
			var dates []string
			for range 4 {
				change, err := watch.Recv()
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range change.GetEvents() {
					if e.GetType() == pb.EventType_EVENT_TYPE_REGISTRY_REPLACED {
						dates = append(dates, e.GetServiceRegistry().GetSource()+" "+e.GetServiceRegistry().GetDate())
					}
				}
			}
			if diff := cmp.Diff([]string{"imported 2026-08-24", "embedded " + before.GetDate(), "imported 2026-08-24"}, dates); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What is no registry is refused with line and reason by either door, and changes nothing.
func TestRefusedImports(t *testing.T) {
	this, next := edition(t)
	header, _, _ := bytes.Cut(this, []byte("\n"))
	tests := []struct {
		name   string
		parts  []any
		reason string
		says   string
	}{
		{"nothing", nil, "INVALID_ARGUMENT", "data: is missing"},
		{"an empty file", []any{&pb.ImportOptions{}, []byte{}}, "INVALID_ARGUMENT", "data: line 1: "},
		{"an error page", []any{[]byte("<!DOCTYPE html><html>")}, "INVALID_ARGUMENT", "HTML page"},
		{"another table", []any{[]byte("a,b\n1,2\n")}, "INVALID_ARGUMENT", "data: line 1: "},
		{"half a record", pieces(this[:len(this)-30], 1<<20), "INVALID_ARGUMENT", "cut off"},
		{"the first half", pieces(this[:bytes.Index(this, []byte("imap,143"))], 50_000), "IMPLAUSIBLE", "force takes it"},
		{"a bad port", []any{append(bytes.Clone(header), "\nx,70000,tcp,,,,,,,,,\r\n"...)}, "INVALID_ARGUMENT", "data: line 2: Port Number"},
		{"options after data", []any{next[:1000], &pb.ImportOptions{}}, "INVALID_ARGUMENT", "options: come once, before all data"},
		{"options twice", []any{&pb.ImportOptions{}, &pb.ImportOptions{}}, "INVALID_ARGUMENT", "options: come once"},
		{"a date that is none", []any{&pb.ImportOptions{Date: "yesterday"}, next[:9]}, "INVALID_ARGUMENT", "options.date: "},
		{"a chunk too large", []any{bytes.Repeat([]byte("x"), 1<<20+1)}, "TOO_LARGE", "data: has 1048577 bytes; at most 1048576 come at a time"},
		{"too large", pieces(long(header), 1<<20), "TOO_LARGE", "data: has more than 16777216 bytes in all"},
	}
	h := start(t, nil)
	services, rest := pb.NewServiceRegistryServiceClient(h.grpc(t)), h.rest(t)
	before := h.registry(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, byGRPC := send(t.Context(), services, tt.parts...)
			_, byREST := sendREST(t.Context(), rest, tt.parts...)
			for door, err := range map[string]error{"gRPC": byGRPC, "REST": byREST} {
				if status.Code(err) != codes.InvalidArgument || info(err).GetReason() != tt.reason || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("%s: %v (%v), want %s: …%s…", door, err, info(err), tt.reason, tt.says)
				}
			}
		})
	}
	if diff := cmp.Diff(before, h.registry(t), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

// REST has bounds of its own: for a message, which is read before anybody knows whose it is, and for all of them.
func TestRefusedImportBodies(t *testing.T) {
	rest := start(t, nil).rest(t)
	this, _ := edition(t)
	header, _, _ := bytes.Cut(this, []byte("\n"))
	var registry strings.Builder
	for _, part := range pieces(long(header), 1<<20) {
		fmt.Fprintf(&registry, `{"data": "%s"}`, base64.StdEncoding.EncodeToString(part.([]byte)))
	}
	endless := func(text string) io.Reader {
		return iotest.DataErrReader(io.LimitReader(&repeated{text: text}, 40<<20))
	}
	tests := []struct {
		name string
		body io.Reader
		says string
	}{
		{"no JSON", strings.NewReader("Service Name,Port Number"), "invalid character 'S'"},
		{"half a message", strings.NewReader(`{"data": "`), "unexpected EOF"},
		{"another field", strings.NewReader(`{"dat": ""}`), `unknown field "dat"`},
		{"two parts in one", strings.NewReader(`{"options": {}, "data": ""}`), "already set; options and data are messages of their own"},
		{"a message without end", io.MultiReader(strings.NewReader(`{"data": "`), endless("AAAA")), "a message has at most 2097152 bytes"},
		{"messages without end", io.MultiReader(strings.NewReader(registry.String()), endless(`{"data": "eA=="}`)), "more than 16777216 bytes in all"},
		{"blanks without end", endless(" \n"), "a message has at most 2097152 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://portd/v1/services:import", tt.body)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := rest.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusBadRequest || !strings.Contains(strings.ReplaceAll(string(text), `\"`, `"`), tt.says) {
				t.Errorf("%s %s (%v), want …%s…", resp.Status, text, err, tt.says)
			}
		})
	}
}

// A repeated text has no end.
type repeated struct {
	text string
	at   int
}

func (r *repeated) Read(p []byte) (n int, _ error) {
	for n < len(p) {
		k := copy(p[n:], r.text[r.at:])
		n, r.at = n+k, (r.at+k)%len(r.text)
	}
	return n, nil
}

// Who breaks off in the middle changes nothing, and who says nothing more keeps nobody from importing.
func TestBrokenImport(t *testing.T) {
	_, next := edition(t)
	h := start(t, nil)
	services := pb.NewServiceRegistryServiceClient(h.grpc(t))
	before := h.registry(t)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	silent, err := services.ImportServices(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := silent.Send(request(next[:1<<20])); err != nil {
		t.Fatal(err)
	}
	if im, err := send(t.Context(), services, pieces(next, 1<<20)...); err != nil || im.GetUnchanged() {
		t.Errorf("while another says nothing: %v (%v)", im, err)
	}
	if _, err := services.UndoImport(t.Context(), &pb.UndoImportRequest{}); err != nil {
		t.Error(err)
	}
	cancel()
	if _, err := silent.CloseAndRecv(); status.Code(err) != codes.Canceled {
		t.Errorf("broken off: %v", err)
	}
	// By REST the body is shorter than it was said to be.
	pr, pw := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://portd/v1/services:import", pr)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		text, _ := protojson.Marshal(request(next[:len(next)-100])) // up to a whole record or not
		_, _ = pw.Write(text)
		pw.CloseWithError(errors.New("gone"))
	}()
	if resp, err := h.rest(t).Do(req); err == nil {
		resp.Body.Close()
		t.Errorf("broken off: %v", resp.Status)
	}
	for deadline := time.Now().Add(5 * time.Second); ; { // the handlers end when they notice
		got := h.registry(t)
		got.Previous = nil // as the import and its undoing have left it
		if got.GetDigest() != before.GetDigest() {
			t.Fatalf("a broken import has changed %v into %v", before, got)
		}
		if im, err := send(t.Context(), services, append([]any{&pb.ImportOptions{DryRun: true}}, pieces(next, 1<<20)...)...); err == nil {
			if im.GetRenamed() != 1 {
				t.Errorf("afterwards: %v", im)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no import is possible any more")
		}
	}
}
