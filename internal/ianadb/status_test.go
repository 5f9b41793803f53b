package ianadb_test

import (
	"testing"

	"github.com/portd/portd/internal/ianadb"
)

func TestStatus(t *testing.T) {
	db := ianadb.Embedded()
	for _, tt := range []struct {
		port     uint16
		protocol ianadb.Protocol
		want     string // the status and the names
	}{
		{80, tcp, "assigned http www www-http"},
		{443, udp, "assigned https"},
		// What one protocol has on a port says nothing of another.
		{514, tcp, "assigned shell"},
		{514, udp, "assigned syslog"},
		{512, tcp, "assigned exec"},
		{512, udp, "assigned comsat biff"},
		{513, tcp, "assigned login"},
		{513, udp, "assigned who"},
		{465, tcp, "assigned urd submissions"},
		{465, udp, "assigned igmpv3lite"},
		{750, tcp, "assigned rfile"},
		{750, udp, "assigned loadav kerberos-iv"},
		{456, tcp, "assigned macon-tcp"},
		{456, udp, "assigned macon-udp"},
		// Several names.
		{42, tcp, "assigned name nameserver"},
		{113, tcp, "assigned ident auth"},
		{631, tcp, "assigned ipp ipps"},
		{666, tcp, "assigned mdqs doom"},
		{1701, udp, "assigned l2f l2tp"},
		{2049, tcp, "assigned shilp nfs"},
		{3000, tcp, "assigned hbci remoteware-cl"},
		{3478, udp, "assigned stun turn stun-behavior"},
		{4444, tcp, "assigned krb524 nv-video"},
		{5349, tcp, "assigned stuns turns stun-behaviors"},
		{9100, tcp, "assigned hp-pdl-datastr pdl-datastream"},
		{625, tcp, "assigned dec-dlm dec_dlm"},
		// Ranges with a name, for all protocols or one.
		{3325, sctp, "assigned active-net"},
		{3367, tcp, "assigned satvid-datalnk"},
		{4299, udp, "assigned vrml-multi-use"},
		{7300, dccp, "assigned swx"},
		{27005, tcp, "assigned flex-lm"},
		{6410, udp, "assigned boe-resssvr4"},
		{6005, tcp, "assigned x11"},
		{6005, sctp, "none"},
		{6667, tcp, "assigned ircu"},
		{6667, udp, "reserved"},
		// A name wins over a stale range, and so does a narrower record.
		{7775, tcp, "assigned inetfs"},
		{7775, udp, "reserved"},
		{7775, sctp, "unassigned"},
		{7776, tcp, "unassigned"},
		{7997, tcp, "assigned pushns"},
		{7997, udp, "reserved"},
		// Names decide, whatever the description begins with; unless it is De-Registered.
		{5349, udp, "assigned stuns turns stun-behaviors"},
		{14001, tcp, "assigned sua"},
		{14001, udp, "retired"},
		{1256, tcp, "assigned de-server"},
		// The words in descriptions.
		{0, tcp, "reserved"},
		{2, tcp, "reserved"}, // "previously compressnet", say the notes
		{1109, tcp, "reserved"},
		{225, tcp, "reserved"},
		{249, sctp, "reserved"},
		{1020, udp, "reserved"},
		{114, tcp, "unassigned"},
		{1895, udp, "unassigned"},
		{15, tcp, "unassigned"},
		{2825, tcp, "unassigned"},
		{2925, tcp, "unassigned"},
		{4748, udp, "unassigned"},
		{5316, tcp, "assigned hpbladems"},
		{5316, udp, "unassigned"},
		{44323, udp, "unassigned"},
		{29170, tcp, "unassigned"},
		{585, tcp, "retired"},
		{2905, udp, "retired"},
		{3403, tcp, "retired"},
		{7626, udp, "retired"},
		{26264, tcp, "retired"},
		{659, tcp, "retired"},
		{2682, udp, "retired"},
		{3404, tcp, "retired"},
		{1028, tcp, "retired"},
		{9006, tcp, "retired"},
		{1783, tcp, "retired"},
		{24, tcp, "private"},
		{35, udp, "private"},
		{57, tcp, "private"},
		{59, tcp, "private"},
		{75, tcp, "private"},
		{77, udp, "private"},
		{87, tcp, "private"},
		{1008, udp, "other"},
		// No record is not free.
		{716, tcp, "none"},
		{1008, tcp, "none"},
		{4502, udp, "none"},
		{36444, tcp, "none"},
		{2376, udp, "none"},
		{443, dccp, "none"},
		{49151, tcp, "reserved"},
		{49152, tcp, "dynamic"},
		{65535, dccp, "dynamic"},
		// All protocols together have no status.
		{443, any_, "none https https https"},
	} {
		got := db.Status(tt.port, tt.protocol).String()
		for name := range db.Names(tt.port, tt.protocol) {
			got += " " + name
		}
		if got != tt.want {
			t.Errorf("%d/%v: %s, want %s", tt.port, tt.protocol, got, tt.want)
		}
	}
}

// TestNarrowest: where records disagree a name decides, then the narrowest, then the one for the protocol itself. The
// last has no case in the registry of today.
func TestNarrowest(t *testing.T) {
	blob, err := ianadb.Compile([]ianadb.Entry{
		{Port: "100", First: 100, Last: 100, Description: "Reserved"},
		{Port: "100", First: 100, Last: 100, Description: "Unassigned", Protocol: tcp},
		{Port: "200", First: 200, Last: 200, Description: "Reserved"},
		{Port: "200-201", First: 200, Last: 201, Description: "Unassigned", Protocol: tcp},
		{Port: "300", First: 300, Last: 300, Description: "Unassigned", Protocol: tcp},
		{Name: "wide", Port: "300-399", First: 300, Last: 399},
	}, ianadb.Source{})
	if err != nil {
		t.Fatal(err)
	}
	db, err := ianadb.Open(string(blob))
	if err != nil {
		t.Fatal(err)
	}
	for port, want := range map[uint16]ianadb.Status{
		100: ianadb.StatusUnassigned, 200: ianadb.StatusReserved, 201: ianadb.StatusUnassigned, 300: ianadb.StatusAssigned,
	} {
		if got := db.Status(port, tcp); got != want {
			t.Errorf("%d: %v, want %v", port, got, want)
		}
	}
}

func TestClassOf(t *testing.T) {
	for port, want := range map[uint16]string{
		0: "system", 1023: "system", 1024: "user", 49151: "user", 49152: "dynamic", 65535: "dynamic",
	} {
		if got := ianadb.ClassOf(port).String(); got != want {
			t.Errorf("%d: %s, want %s", port, got, want)
		}
	}
}
