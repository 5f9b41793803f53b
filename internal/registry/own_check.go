package registry

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/portd/portd/internal/ianadb"
)

// Limits of the host's own entries.
const (
	maxOwn     = 4096    // entries
	maxOwnText = 4096    // bytes in all cells of one
	maxAllText = 1 << 20 // and of all together: one edit may change them all, and is one answer of watch
)

// checkEntry refuses what may not be an entry of the host's own, and writes what may in one way only.
func checkEntry(e *ianadb.Entry) error {
	if err := ianadb.CheckName(e.Name); err != nil {
		return invalid("services.name", "%v", err)
	}
	if strings.EqualFold(e.Name, "any") {
		return invalid("services.name", `"any" stands for a port of portd's choice, as in tcp/any; give it another name`)
	}
	switch {
	case e.Protocol == ianadb.AnyProtocol || e.Protocol > ianadb.DCCP:
		return invalid("services.protocol", "of %s is missing; allowed are tcp, udp, sctp and dccp", e.Name)
	case e.First == 0:
		return invalid("services.ports", "of %s: 0 is not a port; allowed are 1 to 65535", e.Name)
	case e.First > e.Last:
		return invalid("services.ports", "of %s: %d-%d runs backwards", e.Name, e.First, e.Last)
	}
	e.Port = portsText(e.First, e.Last)
	for _, cell := range []struct{ field, text string }{
		{"description", e.Description},
		{"assignee", e.Assignee},
		{"contact", e.Contact},
		{"reference", e.Reference},
		{"unauthorized_use", e.UnauthorizedUse},
		{"notes", e.Notes},
		{"registration_date", e.RegistrationDate},
		{"modification_date", e.ModificationDate},
	} {
		if err := checkText("services."+cell.field, cell.text); err != nil {
			return err
		}
	}
	if size := textSize(e); size > maxOwnText {
		return invalid("services", "%s has %d bytes of text; allowed are %d", e.Name, size, maxOwnText)
	}
	for _, date := range []string{e.RegistrationDate, e.ModificationDate} {
		if date != "" && !isDate(date) {
			return invalid("services", "of %s: %.40q is not a date; write it like 2006-01-02 or 2006-01", e.Name, date)
		}
	}
	if e.ServiceCode == "" {
		return nil
	}
	code, err := ianadb.ParseServiceCode(e.ServiceCode)
	switch {
	case err != nil:
		return invalid("services.service_code", "%v", err)
	case e.Protocol != ianadb.DCCP:
		return invalid("services.service_code", "is for dccp, not for %v", e.Protocol)
	}
	e.ServiceCode = strconv.FormatUint(uint64(code), 10)
	return nil
}

// textSize is how many bytes people have written into an entry.
func textSize(e *ianadb.Entry) int {
	return len(e.Description) + len(e.Assignee) + len(e.Contact) + len(e.Reference) + len(e.UnauthorizedUse) + len(e.Notes) +
		len(e.RegistrationDate) + len(e.ModificationDate)
}

func textOf(own []*OwnService) (size int) {
	for _, s := range own {
		size += textSize(&s.Entry)
	}
	return size
}

func isDate(s string) bool {
	for _, layout := range []string{time.DateOnly, "2006-01"} {
		if _, err := time.Parse(layout, s); err == nil {
			return true
		}
	}
	return false
}

// checkText refuses what could not be shown as it is.
func checkText(field, s string) error {
	switch {
	case len(s) > maxOwnText:
		return invalid(field, "has %d bytes; allowed are %d", len(s), maxOwnText)
	case !utf8.ValidString(s):
		return invalid(field, "is not UTF-8")
	}
	for _, r := range s {
		if !ianadb.Shows(r) {
			return invalid(field, "has the control character %U", r)
		}
	}
	return nil
}
