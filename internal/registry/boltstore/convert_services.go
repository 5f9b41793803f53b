package boltstore

import (
	"fmt"
	"unsafe"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore/storepb"
)

var origins = enum[registry.Origin, storepb.Origin]{
	{registry.Embedded, storepb.Origin_ORIGIN_EMBEDDED},
	{registry.Imported, storepb.Origin_ORIGIN_IMPORTED},
}

// serviceProtocols are by IP protocol number in the file.
var serviceProtocols = enum[ianadb.Protocol, int32]{
	{ianadb.AnyProtocol, 0},
	{ianadb.TCP, int32(registry.TCP)},
	{ianadb.UDP, int32(registry.UDP)},
	{ianadb.SCTP, int32(registry.SCTP)},
	{ianadb.DCCP, int32(registry.DCCP)},
}

// A blob has more than a megabyte and nobody changes it, so it is not copied from a string to bytes or back.

func (c *toStored) edition(e *registry.Edition) *storepb.EditionRecord {
	return &storepb.EditionRecord{
		Edition: c.editionFacts(e),
		Blob:    unsafe.Slice(unsafe.StringData(e.Blob), len(e.Blob)),
	}
}

func (c *fromStored) edition(m *storepb.EditionRecord) *registry.Edition {
	e := c.editionFacts(m.GetEdition())
	if e == nil {
		c.fail(fmt.Errorf("an edition of which nothing is known"))
		return nil
	}
	e.Blob = unsafe.String(unsafe.SliceData(m.GetBlob()), len(m.GetBlob()))
	return e
}

// editionFacts is all of an edition but its blob.
func (c *toStored) editionFacts(e *registry.Edition) *storepb.Edition {
	if e == nil {
		return nil
	}
	origin, err := origins.number(e.Origin)
	c.fail(err)
	return &storepb.Edition{
		Slot:         e.Slot,
		Origin:       origin,
		Date:         e.Date,
		Sha256:       c.digest(e.SHA256),
		Records:      int64(e.Records),
		From:         e.From,
		LastModified: e.LastModified,
		Etag:         e.ETag,
		By:           string(e.By),
		Time:         c.time(e.Time),
	}
}

func (c *fromStored) editionFacts(m *storepb.Edition) *registry.Edition {
	if m == nil {
		return nil
	}
	origin, err := origins.meaning(m.GetOrigin())
	c.fail(err)
	return &registry.Edition{
		Slot:         m.GetSlot(),
		Origin:       origin,
		Date:         m.GetDate(),
		SHA256:       c.digest(m.GetSha256()),
		Records:      int(m.GetRecords()),
		From:         m.GetFrom(),
		LastModified: m.GetLastModified(),
		ETag:         m.GetEtag(),
		By:           registry.Principal(m.GetBy()),
		Time:         c.time(m.GetTime()),
	}
}

func (c *toStored) service(s *registry.OwnService) *storepb.OwnService {
	if s == nil {
		return nil
	}
	return &storepb.OwnService{
		Entry:    c.entry(s.Entry),
		By:       string(s.By),
		Time:     c.time(s.Time),
		Revision: int64(s.Revision),
	}
}

func (c *fromStored) service(m *storepb.OwnService) *registry.OwnService {
	if m == nil {
		return nil
	}
	return &registry.OwnService{
		Entry:    c.entry(m.GetEntry()),
		By:       registry.Principal(m.GetBy()),
		Time:     c.time(m.GetTime()),
		Revision: registry.Revision(m.GetRevision()),
	}
}

func (c *toStored) entry(e ianadb.Entry) *storepb.ServiceEntry {
	protocol, err := serviceProtocols.number(e.Protocol)
	c.fail(err)
	return &storepb.ServiceEntry{
		Name:             e.Name,
		PortNumber:       e.Port,
		Ports:            c.ports(registry.PortRange{First: e.First, Last: e.Last}),
		Protocol:         uint32(protocol),
		Description:      e.Description,
		Assignee:         e.Assignee,
		Contact:          e.Contact,
		RegistrationDate: e.RegistrationDate,
		ModificationDate: e.ModificationDate,
		Reference:        e.Reference,
		ServiceCode:      e.ServiceCode,
		UnauthorizedUse:  e.UnauthorizedUse,
		Notes:            e.Notes,
	}
}

func (c *fromStored) entry(m *storepb.ServiceEntry) ianadb.Entry {
	protocol, err := serviceProtocols.meaning(int32(m.GetProtocol()))
	c.fail(err)
	ports := c.ports(m.GetPorts())
	return ianadb.Entry{
		Name:             m.GetName(),
		Port:             m.GetPortNumber(),
		First:            ports.First,
		Last:             ports.Last,
		Protocol:         protocol,
		Description:      m.GetDescription(),
		Assignee:         m.GetAssignee(),
		Contact:          m.GetContact(),
		RegistrationDate: m.GetRegistrationDate(),
		ModificationDate: m.GetModificationDate(),
		Reference:        m.GetReference(),
		ServiceCode:      m.GetServiceCode(),
		UnauthorizedUse:  m.GetUnauthorizedUse(),
		Notes:            m.GetNotes(),
	}
}
