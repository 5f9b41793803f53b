package main

import (
	"fmt"
	"net/netip"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// What the API says of users, sockets and times, in words for people.

// ownerName is a principal by the name that its user has here.
func ownerName(principal string) string {
	uid, ok := strings.CutPrefix(principal, "uid:")
	if !ok {
		return principal
	}
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return principal
}

// ownerOf is the principal that people mean: a principal as it stands, a uid, or a user's name.
func ownerOf(s string) (string, error) {
	if strings.Contains(s, ":") {
		return s, nil
	}
	if _, err := strconv.ParseUint(s, 10, 32); err == nil {
		return "uid:" + s, nil
	}
	u, err := user.Lookup(s)
	if err != nil {
		return "", usagef("%q is no user here; a name, a uid or a principal like uid:1000 is wanted", s)
	}
	return "uid:" + u.Uid, nil
}

// useText says whose a reservation is, how it stands, and since when.
func useText(r *pb.ReservationUse) string {
	whose := "yours"
	if !r.GetYours() {
		whose = ownerName(r.GetOwner()) + "'s"
	}
	text := fmt.Sprintf("%s, %s since %s", whose, r.GetState(), when(r.GetCreateTime()))
	switch r.GetState() { // since when it listens, or is lost, is not known
	case "listening":
		text = fmt.Sprintf("%s, listening, held since %s", whose, when(r.GetCreateTime()))
	case "lost":
		text = fmt.Sprintf("%s since %s, but lost", whose, when(r.GetCreateTime()))
	}
	if r.GetLease() != "" {
		text += ", " + r.GetLease() + untilClause(r)
	}
	if n := int(r.GetWorkers()); n > 0 {
		text += ", " + count(n, "worker")
	}
	var ids []string
	for _, id := range []string{r.GetName(), r.GetId()} {
		if id != "" {
			ids = append(ids, id)
		}
	}
	if len(ids) > 0 {
		text += " (" + strings.Join(ids, ", ") + ")"
	}
	if who := holdersText(r.GetHolders()); who != "" {
		text += "; " + who
	}
	return text
}

// holdersText says who has sockets where a reservation's own should be. What closed connections have left over matters where
// nobody else is there.
func holdersText(holders []*pb.Holder) string {
	var who []string
	for _, h := range holders {
		if h.GetState() != pb.SocketState_SOCKET_STATE_LEFTOVER {
			who = append(who, fmt.Sprintf("%s is %s on %s", holderName(h), word(h.GetState()), holderAddr(h)))
		}
	}
	if len(who) == 0 && len(holders) > 0 {
		return "closed connections that the kernel still remembers"
	}
	return strings.Join(who, ", ")
}

// holderName says whose a socket is, as far as it is known.
func holderName(h *pb.Holder) string {
	if h.Uid == nil {
		return "nobody"
	}
	if len(h.GetProcesses()) == 0 {
		return "a process of " + userText(h.GetUid(), h.GetUser())
	}
	p := h.GetProcesses()[0]
	who := userText(p.GetUid(), p.GetUser())
	if place := processPlace(p); place != "" {
		who += ", " + place
	}
	more := ""
	if n := len(h.GetProcesses()) - 1; n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("%s (pid %d, %s)%s", p.GetCommand(), p.GetPid(), who, more)
}

func userText(uid uint32, name string) string {
	if name == "" {
		return fmt.Sprintf("uid %d", uid)
	}
	return "user " + name
}

// processPlace is the container or the service that a process is of, in short, or nothing.
func processPlace(p *pb.Process) string {
	return registry.Process{Container: p.GetContainer(), Unit: p.GetUnit()}.Place()
}

// holderAddr is the address and port of a socket, as ss(8) has them.
func holderAddr(h *pb.Holder) string {
	e := h.GetEndpoint()
	host := e.GetAddress()
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		host = "[" + host + "]"
	}
	if e.GetDevice() != "" {
		host += "%" + e.GetDevice()
	}
	return host + ":" + portsText(e.GetPorts())
}

// when is a time of today by the clock, and another with its day.
func when(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	at, now := t.AsTime().Local(), time.Now()
	if at.YearDay() == now.YearDay() && at.Year() == now.Year() {
		return at.Format("15:04")
	}
	return at.Format("2006-01-02 15:04")
}

// full is a time to the second, with its day.
func full(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return t.AsTime().Local().Format(time.DateTime)
}

// untilClause goes after a lease that has a time.
func untilClause(r *pb.ReservationUse) string {
	if r.GetExpireTime() == nil {
		return ""
	}
	return ", until " + full(r.GetExpireTime())
}

// untilText is when a reservation ends by itself, if it does: a lease without a time ends with its process or its session.
func untilText(res *pb.Reservation) string {
	if res.GetLeaseId() != "" && res.GetExpireTime() == nil {
		return "with its lease"
	}
	return when(res.GetExpireTime())
}

func count(n int, what string) string {
	switch n {
	case 0:
		return "no " + what + "s"
	case 1:
		return "1 " + what
	}
	return thousands(uint32(n)) + " " + what + "s"
}

func nameOrID(res *pb.Reservation) string {
	if res.GetName() != "" {
		return res.GetName()
	}
	return res.GetId()
}

// streams says whether sockets of p listen.
func streams(p pb.Protocol) bool {
	switch p {
	case pb.Protocol_PROTOCOL_TCP, pb.Protocol_PROTOCOL_SCTP, pb.Protocol_PROTOCOL_DCCP, pb.Protocol_PROTOCOL_UNIX:
		return true
	}
	return false
}
