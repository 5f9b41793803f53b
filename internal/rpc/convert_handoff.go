package rpc

import (
	"net/netip"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/portd/portd/proto/portd/v1"
)

// fromConnections converts many: those of one port share what is said of their listener.
func fromConnections(all []Connection) []*pb.Connection {
	out := make([]*pb.Connection, len(all))
	for i, c := range all {
		out[i] = &pb.Connection{
			ReservationId: c.Key.Reservation, WorkerId: c.Worker, WorkerPid: c.PID,
			Peer: addrText(c.Peer), Local: addrText(c.Local), AcceptTime: fromTime(c.Accepted), Redelivered: c.Redelivered, State: c.State,
		}
		if i > 0 && all[i-1].Endpoint == c.Endpoint {
			out[i].Listener = out[i-1].Listener
		} else {
			out[i].Listener = fromEndpoint(c.Endpoint)
		}
		if c.Figures {
			out[i].Rtt, out[i].BytesReceived, out[i].BytesSent = durationpb.New(c.RTT), c.BytesReceived, c.BytesSent
		}
	}
	return out
}

func addrText(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func fromSum(t Totals) *pb.HandoffStatus {
	return &pb.HandoffStatus{
		HandedOver: t.HandedOver, Redelivered: t.Redelivered, TakenBack: t.TakenBack, Lost: t.Lost, Refused: t.Refused,
		Held: uint32(t.Held), PerSecond: t.PerSecond,
	}
}

func fromWaits(buckets []WaitBucket) *pb.LatencyHistogram {
	out := &pb.LatencyHistogram{}
	for _, b := range buckets {
		bucket := &pb.LatencyBucket{Count: b.Count}
		if b.AtMost > 0 {
			bucket.AtMost = durationpb.New(b.AtMost)
		}
		out.Buckets, out.Samples = append(out.Buckets, bucket), out.Samples+b.Count
	}
	return out
}
