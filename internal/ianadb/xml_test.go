package ianadb_test

import (
	"bytes"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
)

// xmlFile is the registry with some records, the first of which begins in line 3.
func xmlFile(records ...string) string {
	return `<registry xmlns="http://www.iana.org/assignments" id="service-names-port-numbers">` + "\n<updated>2026-08-17</updated>\n" +
		strings.Join(records, "\n") + "\n</registry>\n"
}

func TestParseXML(t *testing.T) {
	got, date, err := ianadb.ParseXML(strings.NewReader(`<?xml version='1.0' encoding='UTF-8'?>
<?xml-stylesheet type="text/xsl" href="service-names-port-numbers.xsl"?>
<!-- a comment -->
` + xmlFile(`<title>Registry <xref type="rfc" data="rfc6335"/></title>
<record updated="2024-12-20" date="2007-11" new="attributes do not disturb">
  <name> http </name><!-- between --><protocol>tcp</protocol>
  <xref type="rfc" data="rfc9110"/> <xref type="person" data="Jane_Doe"/> <xref type="note" data="1"/>
  <xref type="draft" data="draft-doe-05" section="4.3">draft-doe-05, Section 4.3</xref> <xref type="person" data="John_Doe"/>
  <number>80</number>
  <description>folded, with a blank 
      before the break
    and without;
flush, a blank 
before; three<br/><br/>
  breaks &amp; an &lt;entity&gt;  </description>
  <note>
    <paragraph>see <xref type="uri" data="https://example.org/a?b"/></paragraph>
    <paragraph>second</paragraph>
  </note>
</record>
<record><name>discard</name><number>9</number><protocol>dccp</protocol><sc>1145656131</sc><unauthorized>on port 9</unauthorized>
  <description/><assignee>
    <xref type="person" data="Example_Corp"/>
  </assignee><xref type="text">n/a</xref></record>
<people><person id="Jane_Doe"><name>Jane</name></person></people>`) + "<!-- the end -->\n"))
	want := []ianadb.Entry{
		{
			Name: "http", Port: "80", First: 80, Last: 80, Protocol: ianadb.TCP,
			Description: "folded, with a blank before the break\n    and without;\nflush, a blank \nbefore; three\n  breaks & an <entity>",
			Assignee:    "[Jane_Doe][John_Doe]", Contact: "[Jane_Doe][John_Doe]", RegistrationDate: "2007-11", ModificationDate: "2024-12-20",
			Reference: "[RFC9110][1][draft-doe-05, Section 4.3]", Notes: "see [https://example.org/a?b]\n            second",
		},
		{
			Name: "discard", Port: "9", First: 9, Last: 9, Protocol: ianadb.DCCP, Assignee: "[Example_Corp]", Reference: "[n/a]",
			ServiceCode: "1145656131", UnauthorizedUse: "on port 9",
		},
	}
	if diff := cmp.Diff(want, got); err != nil || date != "2026-08-17" || diff != "" {
		t.Errorf("date %q, error %v (-want +got):\n%s", date, err, diff)
	}
}

// TestParseXMLTwin: the XML of IANA's gives, byte for byte, the cells of its CSV.
func TestParseXMLTwin(t *testing.T) {
	xml, csv := excerpts(t)
	entries, _, err := ianadb.ParseXML(bytes.NewReader(xml))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(csv), string(writeCSV(t, entries))); diff != "" {
		t.Errorf("(-csv +xml):\n%s", diff)
	}
}

func TestParseXMLRefuses(t *testing.T) {
	const root = `<registry xmlns="http://www.iana.org/assignments" id="service-names-port-numbers">`
	const record = "<record><name>a</name><number>1</number></record>"
	for name, tt := range map[string]struct{ xml, line, reason string }{
		"nothing":                    {"", "line 1", "no element"},
		"a declaration alone":        {"<?xml version='1.0'?>\n", "line 2", "no element"},
		"text":                       {"Service Name,", "line 1", `"Service Name," outside of the root`},
		"a feed":                     {"<?xml version='1.0'?>\n<rss version='2.0'/>", "line 2", `<rss> of the namespace ""`},
		"no namespace":               {`<registry id="service-names-port-numbers"/>`, "line 1", `<registry> of the namespace ""`},
		"another namespace":          {strings.Replace(root, "iana.org", "iana.net", 1), "line 1", `namespace "http://www.iana.net/assignments"`},
		"another registry":           {strings.Replace(root, "service-names-port-numbers", "media-types", 1), "line 1", `IANA's registry "media-types"`},
		"Latin-1":                    {"<?xml version='1.0' encoding='ISO-8859-1'?>\n" + root, "line 1", "ISO-8859-1"},
		"bytes of Latin-1":           {xmlFile(record, "<record><name>FORT\xc9</name></record>"), "line 4", "invalid UTF-8"},
		"no records":                 {xmlFile(), "line 4", "no record"},
		"an end within":              {root + record + "\n", "line 2", "the file ends within <registry>: it looks cut off"},
		"an end within a record":     {root + record + "\n<record>\n<name>", "line 3", "the file ends within <name>: it looks cut off"},
		"an end within a tag":        {root + record + "\n<record", "line 2", "looks cut off"},
		"an end within a comment":    {root + record + "\n<!-- ", "line 2", "looks cut off"},
		"more after it":              {xmlFile(record) + "<registry/>", "line 5", "a second root"},
		"text after it":              {xmlFile(record) + "more", "line 5", `"more" outside of the root`},
		"a document type":            {"<!DOCTYPE registry>\n" + xmlFile(record), "line 1", "a document type is not read"},
		"entities of its own":        {`<!DOCTYPE registry [<!ENTITY a "aaaaaaaaaa">]>` + "\n" + xmlFile(record), "line 1", "a document type is not read"},
		"an unknown entity":          {xmlFile("<record><name>&a;</name></record>"), "line 3", "invalid character entity &a;"},
		"an outside file":            {xmlFile(`<record><name>a</name><xi:include href="/etc/passwd"/></record>`), "line 3", "<xi:include> has a prefix"},
		"an element of another kind": {xmlFile(`<record xmlns="http://example.org"><name>a</name></record>`), "line 3", "<record> is of another namespace"},
		"an unknown element":         {xmlFile(record, "<record><name>a</name><colour>red</colour></record>"), "line 4", "<colour> in a record is unknown"},
		"an unknown one in a cell":   {xmlFile("<record><note>a<b>c</b></note></record>"), "line 3", "<b> in <note> is unknown"},
		"an unknown reference":       {xmlFile(`<record><name>a</name><xref type="isbn" data="1"/></record>`), "line 3", `a reference to a "isbn" is unknown`},
		"an element in a reference":  {xmlFile(`<record><name>a</name><xref type="text"><br/></xref></record>`), "line 3", "<br> in <xref>"},
		"text in a record":           {xmlFile("<record>a<name>b</name></record>"), "line 3", `"a" between the elements`},
		"two names":                  {xmlFile("<record>\n<name>a</name>\n<name>b</name></record>"), "line 5", "a second <name> in the record of line 3"},
		"two assignees":              {xmlFile("<record><name>a</name><assignee/><assignee/></record>"), "line 3", "a second <assignee>"},
		"a record in a note":         {xmlFile("<note>"+record+"</note>", record), "line 3", "a record in <note>"},
		"a registry in it":           {xmlFile(record, "<registry>"+record+"</registry>"), "line 4", "a record in <registry>"},
		"crossed elements":           {xmlFile("<record><name>a</record></name>"), "line 3", "</record> ends what has not begun"},
		"an end too many":            {xmlFile(record) + "</registry>", "line 5", "</registry> ends what has not begun"},
		"deep nesting":               {xmlFile("<note>" + strings.Repeat("<a>", 1000)), "line 3", "deeper than 16"},
		"deep nesting in a cell":     {xmlFile("<record><note>" + strings.Repeat("<paragraph>", 1000)), "line 3", "deeper than 16"},
		"a date":                     {strings.Replace(xmlFile(record), "2026-08-17", "17 August", 1), "line 2", `<updated> says "17 August"`},
		"port 65536":                 {xmlFile(record, "<record><name>b</name><number>65536</number></record>"), "line 4: Port Number", `"65536"`},
		"an unknown protocol":        {xmlFile("<record><name>b</name><protocol>quic</protocol></record>"), "line 3: Transport Protocol", `"quic"`},
		"neither name nor port":      {xmlFile("<record/>"), "line 3: Service Name", "neither"},
		"an escape sequence":         {xmlFile("<record><name>\x1b[31mred</name></record>"), "line 3", "illegal character code U+001B"},
		"an escaped one":             {xmlFile("<record><name>&#x9b;31mred</name></record>"), "line 3: Service Name", "U+009B"},
		"one in a document type":     {"<!\x1b]0;owned\a>\n" + xmlFile(record), "line 1", `"<!\x1b]0;owned\a": a document type`},
		"one in an element's name":   {xmlFile("<\u009b31m>"), "line 3", `not XML: "invalid XML name: \u009b31m"`},
		"a long name of an element":  {xmlFile("<\u0300" + strings.Repeat("x", 500_000) + ">"), "line 3", "xxx\""},
		"a long cell":                {xmlFile("<record><name>a</name><note>" + strings.Repeat("x", 1<<15) + "</note></record>"), "line 3: Assignment Notes", "32768 bytes"},
		"a duplicate":                {xmlFile(record, record), "line 4", `"a 1" is a duplicate of line 3`},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := ianadb.ParseXML(strings.NewReader(tt.xml))
			if err == nil || !strings.HasPrefix(err.Error(), tt.line+":") || !strings.Contains(err.Error(), tt.reason) {
				t.Errorf("error %v, want one of %s about %s", err, tt.line, tt.reason)
			}
			if err != nil && (len(err.Error()) > 300 || strings.ContainsFunc(err.Error(), unicode.IsControl)) {
				t.Errorf("not fit for a terminal: %.1000q", err)
			}
			if got != nil {
				t.Errorf("%d entries beside the error", len(got))
			}
		})
	}
}
