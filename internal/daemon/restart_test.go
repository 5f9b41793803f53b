package daemon_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/daemon"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

func TestHeldAcrossRestart(t *testing.T) {
	d, c := start(t)
	reserve(t, c, "web", "tcp/8080")
	reserve(t, c, "silent", "tcp/8081", "udp/8081")
	if _, err := c.Reservations.Listen(t.Context(), &pb.ListenRequest{
		Reservation: "web", Options: &pb.ListenOptions{Backlog: 7},
	}); err != nil {
		t.Fatal(err)
	}
	wantHeld(t, 8080, 8081)
	d.Stop(t)
	wantFree(t, 8080, 8081)

	// All is as it was before portd says that it is ready, and so before anybody can ask.
	var waiting net.Conn
	ctx, stop := context.WithCancel(t.Context())
	err := daemon.Run(ctx, daemon.Config{Socket: d.Socket, StateDir: d.State, Ready: func() {
		defer stop()
		wantHeld(t, 8080, 8081)
		if pc, err := net.ListenPacket("udp", ":8081"); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("bind of udp/8081: %v", err)
			if err == nil {
				pc.Close()
			}
		}
		var err error
		if waiting, err = net.Dial("tcp", "127.0.0.1:8080"); err != nil {
			t.Errorf("it does not listen when portd is ready: %v", err)
		}
		if _, err := net.Dial("tcp", "127.0.0.1:8081"); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("dial of a port that is only held: %v", err)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if waiting != nil {
		waiting.Close()
	}

	d.Restart(t)
	if waiting, err = net.Dial("tcp", "127.0.0.1:8080"); err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	web := get(t, c, "web").GetAssigned()[0]
	if web.GetState() != pb.EndpointState_ENDPOINT_STATE_LISTENING || web.GetListenOptions().GetBacklog() != 7 {
		t.Errorf("after the restart: %v", web)
	}
	// What was dialled before any worker came is served by the first.
	ln, err := client.ListenConfig{Portd: client.Options{Socket: d.Socket}}.Listen(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	served, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if served.RemoteAddr().String() != waiting.LocalAddr().String() {
		t.Errorf("served %v, want %v", served.RemoteAddr(), waiting.LocalAddr())
	}
	if _, err := io.WriteString(served, "hello"); err != nil {
		t.Error(err)
	}
	served.Close()
	if text, err := io.ReadAll(waiting); err != nil || string(text) != "hello" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestReleasedStaysReleased(t *testing.T) {
	d, c := start(t)
	res := reserve(t, c, "web", "tcp/8080")
	if _, err := c.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: "web"}); err != nil {
		t.Fatal(err)
	}
	wantFree(t, 8080)
	d.Restart(t)
	wantFree(t, 8080)
	if _, err := c.Reservations.GetReservation(t.Context(), &pb.GetReservationRequest{Reservation: res.GetId()}); !errors.Is(err, client.ErrNotFound) {
		t.Error(err)
	}
}

// A program that took the port while portd was away keeps it, portd starts and says who it is, and has the port back
// when that program ends, all by itself.
func TestLost(t *testing.T) {
	d, c := start(t)
	reserve(t, c, "web", "tcp/8180")
	reserve(t, c, "many", "tcp/9000-9004")
	reserve(t, c, "other", "tcp/8081")
	if _, err := c.Reservations.Listen(t.Context(), &pb.ListenRequest{Reservation: "web"}); err != nil {
		t.Fatal(err)
	}
	before := head(t, c)
	d.Stop(t)
	pid, let := steal(t, ":8180", ":9002")
	d.Restart(t)

	for name, port := range map[string]uint32{"web": 8180, "many": 9002} {
		a := get(t, c, name).GetAssigned()[0]
		if len(a.GetExceptions()) != 1 {
			t.Fatalf("%s: %v", name, a)
		}
		lost := a.GetExceptions()[0]
		if lost.GetState() != pb.EndpointState_ENDPOINT_STATE_LOST || lost.GetPorts().GetFirst() != port || lost.GetPorts().GetLast() != port {
			t.Errorf("%s: %v", name, lost)
		}
		if len(lost.GetHolders()) != 1 || len(lost.GetHolders()[0].GetProcesses()) != 1 {
			t.Fatalf("%s: the culprit is not named: %v", name, lost)
		}
		// comm of a program that was started by its name in /proc.
		if p := lost.GetHolders()[0].GetProcesses()[0]; int(p.GetPid()) != pid || p.GetCommand() != "exe" {
			t.Errorf("%s: the culprit is %v, want pid %d", name, p, pid)
		}
	}
	if s := get(t, c, "web").GetAssigned()[0].GetState(); s != pb.EndpointState_ENDPOINT_STATE_LOST {
		t.Errorf("web is %v", s)
	}
	wantHeld(t, 8081, 9000, 9001, 9003, 9004)
	st, err := c.Daemon.GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil || st.GetLost() != 2 || st.GetReservations() != 3 {
		t.Errorf("%v, %v", st, err)
	}

	let()
	events := newWatch(t, c, before+1)
	got := map[string][]pb.EventType{}
	for len(got["web"]) < 2 || len(got["many"]) < 2 {
		for _, ev := range events.next(t).GetEvents() {
			got[ev.GetReservation().GetName()] = append(got[ev.GetReservation().GetName()], ev.GetType())
			if ev.GetCaller() != "portd" {
				t.Errorf("%v by %s", ev.GetType(), ev.GetCaller())
			}
			// All who watch read it: the user, and not the process.
			if why := ev.GetReason(); ev.GetType() == pb.EventType_EVENT_TYPE_LOST &&
				(!strings.Contains(why, "is taken: a process of user") && !strings.Contains(why, "is taken: a process of uid") || strings.Contains(why, "pid")) {
				t.Errorf("lost: %s", why)
			}
		}
	}
	for name, types := range got {
		if types[0] != pb.EventType_EVENT_TYPE_LOST || types[1] != pb.EventType_EVENT_TYPE_RECOVERED {
			t.Errorf("%s: %v", name, types)
		}
	}
	wantHeld(t, 8180, 9002)
	conn, err := net.Dial("tcp", "127.0.0.1:8180")
	if err != nil {
		t.Fatalf("it listened before it was lost: %v", err)
	}
	conn.Close()
}

// A portd that is told to stop in the middle of everything stops, and leaves nothing.
func TestStopsUnderLoad(t *testing.T) {
	d, c := start(t)
	reserve(t, c, "web", "tcp/8080")
	ln, err := client.ListenConfig{Portd: client.Options{Socket: d.Socket}}.Listen(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	events := newWatch(t, c, 0)
	events.next(t) // it stands
	for range 20 {
		conn, err := net.Dial("tcp", "127.0.0.1:8080")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	silent, err := net.Dial("unix", d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	begin := time.Now()
	d.Stop(t)
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	wantFree(t, 8080)
}

func TestStartsInTurn(t *testing.T) {
	clean(t)
	d := portdtest.New(t)
	for range 10 {
		d.Restart(t)
	}
}
