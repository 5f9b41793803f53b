package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/portd/portd/api/openapi"
	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/rpc/portdgw"
	pb "github.com/portd/portd/proto/portd/v1"
)

// The gateway writes what strangers send to standard error, by way of gRPC's log. What the operator should read is in portd's own.
func init() {
	if os.Getenv("GRPC_GO_LOG_SEVERITY_LEVEL") == "" {
		grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)) // only here: later is a race
	}
}

// newREST is the HTTP server of the connections that do not speak gRPC, for conns only.
func newREST(to grpc.ClientConnInterface, log *slog.Logger) *http.Server {
	gateway := newGateway(to)
	return &http.Server{
		Handler:           bounded(gateway, routes(gateway)),
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return withCaller(ctx, c.(*conn)) },
		ReadHeaderTimeout: patience,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelError), // it has nothing on what strangers send
	}
}

const welcome = `This is portd, the port authority of this host. Its REST API:

  /v1/status              about portd, and who you are to it
  /v1/ports:whois?port=443
  /v1/ports:free?protocols=PROTOCOL_TCP
  /v1/services:search?query=mail
  /v1/reservations
  /openapi.json           the whole API (OpenAPI 3.1)
  /openapi/v2.json        the same in OpenAPI 2.0

gRPC is on this same socket, with reflection. On the command line: portctl help.
`

func routes(gateway http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", fixed("text/plain; charset=utf-8", []byte(welcome)))
	mux.HandleFunc("GET /openapi.json", fixed("application/json", openapi.V31))
	mux.HandleFunc("GET /openapi/v2.json", fixed("application/json", openapi.V2))
	mux.Handle("/", gateway)
	return mux
}

func fixed(contentType string, content []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}
}

// bounded reads the body before anybody waits for it, so much of it and so long. Reading ahead also lets the server notice
// a caller who has gone while his stream is still on.
func bounded(mux *runtime.ServeMux, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		line := http.NewResponseController(w)
		switch {
		case r.URL.Path == importPath: // a file, which its reader takes piece by piece
			r.Body = &patientBody{http.MaxBytesReader(w, r.Body, maxImport), line, expectBody(r.Context(), line)}
		case r.URL.Path == restorePath: // likewise; what it may have its reader says
			r.Body = &patientBody{r.Body, line, expectBody(r.Context(), line)}
		case r.Body != http.NoBody:
			_ = line.SetReadDeadline(time.Now().Add(patience))
			request := expectBody(r.Context(), line)
			request.comes(-1)
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMessage))
			request.here()
			if err != nil {
				w.Header().Set("Connection", "close")
				runtime.HTTPError(r.Context(), mux, &lines{}, w, r, badBody(err))
				return
			}
			_ = line.SetReadDeadline(time.Time{})
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		next.ServeHTTP(w, r)
	})
}

const (
	importPath  = "/v1/services:import"
	restorePath = "/v1/backup:restore"
	maxImport   = 2 * ianadb.MaxFile // bytes of a body: the file in base64, and JSON around it
	maxLine     = 2 << 20            // bytes of one message in it
)

// A patientBody waits a while for each piece of a body, and not for the whole.
type patientBody struct {
	io.ReadCloser
	line *http.ResponseController
	next *arrival
}

func (b *patientBody) Read(p []byte) (int, error) {
	_ = b.line.SetReadDeadline(time.Now().Add(patience))
	b.next.comes(-1)
	n, err := b.ReadCloser.Read(p)
	b.next.here()
	if err != nil {
		_ = b.line.SetReadDeadline(time.Time{}) // what comes next has its own
	}
	if tooBig := (*http.MaxBytesError)(nil); errors.As(err, &tooBig) {
		err = fmt.Errorf("an import has at most %d bytes", tooBig.Limit)
	}
	return n, err
}

func badBody(err error) error {
	if tooBig := (*http.MaxBytesError)(nil); errors.As(err, &tooBig) {
		return refusal(http.StatusRequestEntityTooLarge, codes.ResourceExhausted, "TOO_LARGE", fmt.Sprintf("a request has at most %d bytes", tooBig.Limit))
	}
	return refusal(0, codes.InvalidArgument, "INVALID_ARGUMENT", fmt.Sprintf("the request's body did not arrive: %v", err))
}

// newGateway is the generated gateway, calling through to.
func newGateway(to grpc.ClientConnInterface) *runtime.ServeMux {
	mux := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &lines{}),
		runtime.WithErrorHandler(answerError),
		runtime.WithRoutingErrorHandler(answerNoRoute),
		runtime.SetQueryParameterParser(strict{}),                                           // for the whole process, in which there is one gateway
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }), // no service reads any
		runtime.WithDisablePathLengthFallback(),                                             // a form that is posted is not a GET
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithWriteContentLength(),
	)
	ctx := context.Background()
	if err := errors.Join(
		portdgw.RegisterReservationServiceHandlerClient(ctx, mux, pb.NewReservationServiceClient(to)),
		portdgw.RegisterLeaseServiceHandlerClient(ctx, mux, pb.NewLeaseServiceClient(to)),
		portdgw.RegisterServiceRegistryServiceHandlerClient(ctx, mux, pb.NewServiceRegistryServiceClient(to)),
		portdgw.RegisterPortServiceHandlerClient(ctx, mux, pb.NewPortServiceClient(to)),
		portdgw.RegisterHandoffServiceHandlerClient(ctx, mux, pb.NewHandoffServiceClient(to)),
		portdgw.RegisterUpgradeServiceHandlerClient(ctx, mux, pb.NewUpgradeServiceClient(to)),
		portdgw.RegisterBackupServiceHandlerClient(ctx, mux, pb.NewBackupServiceClient(to)),
		portdgw.RegisterDaemonServiceHandlerClient(ctx, mux, pb.NewDaemonServiceClient(to)),
	); err != nil {
		panic(err) // generated code that contradicts itself
	}
	return mux
}

// lines is JSON as protobuf maps it, one message per line; fields that a request does not have are refused, lest a
// misspelt one go unnoticed.
type lines struct{ runtime.JSONPb }

func (l *lines) Marshal(v any) (b []byte, err error) {
	if m, ok := v.(proto.Message); ok {
		b, err = l.MarshalOptions.Marshal(m)
	} else {
		b, err = l.JSONPb.Marshal(v)
	}
	return append(b, '\n'), err
}

// NewDecoder reads messages that follow one another. A stranger's has to be read before anybody can tell that he may not
// send it, so that each is bounded by itself.
func (l *lines) NewDecoder(r io.Reader) runtime.Decoder {
	in := &bounds{r: r}
	decoder := l.JSONPb.NewDecoder(in)
	return runtime.DecoderFunc(func(v any) error {
		in.left = maxLine
		return decoder.Decode(v)
	})
}

type bounds struct {
	r    io.Reader
	left int
}

func (b *bounds) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, fmt.Errorf("a message has at most %d bytes; send more of them", maxLine)
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

func (l *lines) Delimiter() []byte { return nil } // the line has its end

func (l *lines) StreamContentType(any) string { return "application/x-ndjson" }

// strict refuses query parameters that are no field of the request; the gateway's own parser skips them.
type strict struct{ runtime.DefaultQueryParser }

func (s strict) Parse(m proto.Message, values url.Values, filter *utilities.DoubleArray) error {
	for key := range values {
		path, _, _ := strings.Cut(key, "[")
		if !hasField(m.ProtoReflect().Descriptor(), strings.Split(path, ".")) {
			return fmt.Errorf("%s: there is no such parameter", key)
		}
	}
	return s.DefaultQueryParser.Parse(m, values, filter)
}

func hasField(m protoreflect.MessageDescriptor, path []string) bool {
	for _, name := range path {
		if m == nil {
			return false
		}
		f := m.Fields().ByTextName(name)
		if f == nil {
			f = m.Fields().ByJSONName(name)
		}
		if f == nil {
			return false
		}
		m = f.Message()
	}
	return true
}

// answerError says what went wrong as google.rpc.Status. What the gateway itself refuses has not been through the
// interceptors and gets its reason here.
func answerError(ctx context.Context, mux *runtime.ServeMux, m runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	if st := status.Convert(err); st.Code() == codes.InvalidArgument && len(st.Details()) == 0 {
		// protojson puts a no-break space into its messages at random, so that nobody relies on them.
		text := strings.TrimPrefix(strings.ReplaceAll(st.Message(), "\u00a0", " "), "proto: ")
		if r.URL.Path == importPath && strings.HasSuffix(text, "is already set") {
			text += "; options and data are messages of their own, one after the other"
		}
		err = refusal(0, st.Code(), "INVALID_ARGUMENT", text)
	}
	if reasonOf(err) == "HANDED_OVER" { // it is the next portd that answers, and not on this connection
		w.Header().Set("Connection", "close")
		w.Header().Set("Retry-After", "0")
	}
	runtime.DefaultHTTPErrorHandler(ctx, mux, m, w, r, err)
}

// reasonOf is the word for programs that an answer has.
func reasonOf(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

func answerNoRoute(ctx context.Context, mux *runtime.ServeMux, m runtime.Marshaler, w http.ResponseWriter, r *http.Request, httpCode int) {
	err := refusal(httpCode, codes.InvalidArgument, "INVALID_ARGUMENT", http.StatusText(httpCode))
	switch httpCode {
	case http.StatusNotFound:
		text := fmt.Sprintf("there is no %s here: GET / says what there is", r.URL.Path)
		if ref, ok := strings.CutPrefix(r.URL.Path, "/v1/reservations/"); ok {
			text = fmt.Sprintf("an endpoint does not fit into a path: say /v1/reservations:find?reservation=%s, or :release", ref)
		}
		err = refusal(httpCode, codes.NotFound, "NO_SUCH_PATH", text)
	case http.StatusMethodNotAllowed:
		err = refusal(httpCode, codes.Unimplemented, "NO_SUCH_METHOD", fmt.Sprintf("%s is not for %s: /openapi.json says what is", r.Method, r.URL.Path))
	}
	runtime.HTTPError(ctx, mux, m, w, r, err)
}

// refusal is an error of the gateway's own; an HTTP code of 0 is the one that belongs to code.
func refusal(httpCode int, code codes.Code, reason, text string) error {
	err := withDetails(status.New(code, text), &errdetails.ErrorInfo{Domain: domain, Reason: reason}).Err()
	if httpCode == 0 {
		return err
	}
	return &runtime.HTTPStatusError{HTTPStatus: httpCode, Err: err}
}
