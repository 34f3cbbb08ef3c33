package export

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"time"

	colpb "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/slim/otlp/logs/v1"
	resourcepb "go.opentelemetry.io/proto/slim/otlp/resource/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const (
	// maxRecords and maxBytes, before compression, end a batch.
	maxRecords = 1000
	maxBytes   = 512 << 10
	// schemaURL says of which version the names of the conventions are.
	schemaURL = "https://opentelemetry.io/schemas/1.38.0"
	scopeName = "github.com/porthole-dev/porthole"
)

// batch is a request that is ready to be sent.
type batch struct {
	body     []byte // compressed, where that is asked for
	records  int
	from, to time.Duration // CLOCK_BOOTTIME of the earliest and the latest event
	live     bool          // of events as they came, not of the history
	losses   []loss        // that it tells of
	tries    int
}

// builder collects records and makes batches of them. A record is encoded when it is added: what is kept is bytes.
type builder struct {
	enc      encoder
	resource []byte // field of ResourceLogs, encoded
	scope    []byte // fields of ScopeLogs
	gzip     bool

	records  []byte // fields of ScopeLogs, encoded
	count    int
	since    time.Time // when the first was added
	from, to time.Duration
	losses   []loss
	whole    []byte
	zip      *gzip.Writer
}

// The numbers of fields in opentelemetry/proto/logs/v1 and collector/logs/v1.
const (
	requestResourceLogs   = 1
	resourceLogsResource  = 1
	resourceLogsScopeLogs = 2
	resourceLogsSchemaURL = 3
	scopeLogsScope        = 1
	scopeLogsRecords      = 2
	scopeLogsSchemaURL    = 3
)

func newBuilder(c *Config, boot [16]byte) (*builder, error) {
	b := &builder{enc: encoder{boot: boot}, gzip: c.gzip}
	res := &resourcepb.Resource{}
	for _, a := range c.resource {
		res.Attributes = append(res.Attributes, &commonpb.KeyValue{Key: valid(a.name), Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: a.value}}})
	}
	text, err := proto.Marshal(res)
	if err != nil {
		return nil, fmt.Errorf("encode the resource: %w", err)
	}
	b.resource = appendField(nil, resourceLogsResource, text)
	scope, err := proto.Marshal(&commonpb.InstrumentationScope{Name: scopeName, Version: valid(c.version)})
	if err != nil {
		return nil, fmt.Errorf("encode the scope: %w", err)
	}
	b.scope = appendField(nil, scopeLogsScope, scope)
	return b, nil
}

func appendField(b []byte, number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), value)
}

// add adds a record.
func (b *builder) add(f *fact) error {
	now := time.Now()
	rec := b.enc.record(f, now)
	opts := proto.MarshalOptions{}
	size := opts.Size(rec)
	at := len(b.records)
	b.records = protowire.AppendVarint(protowire.AppendTag(b.records, scopeLogsRecords, protowire.BytesType), uint64(size))
	out, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b.records, rec)
	if err != nil {
		b.records = b.records[:at]
		return fmt.Errorf("encode a record: %w", err)
	}
	b.records = out
	if b.count == 0 {
		b.since, b.from, b.to = now, f.boot, f.boot
	}
	b.from, b.to = min(b.from, f.boot), max(b.to, f.boot)
	if f.lost != nil {
		b.losses = append(b.losses, *f.lost)
	}
	b.count++
	return nil
}

func (b *builder) full() bool { return b.count >= maxRecords || len(b.records) >= maxBytes }

// build makes a batch of what was added; nil: that is nothing.
func (b *builder) build() *batch {
	if b.count == 0 {
		return nil
	}
	out := &batch{records: b.count, from: b.from, to: b.to, losses: b.losses}
	scopeLogs := len(b.scope) + len(b.records) + protowire.SizeTag(scopeLogsSchemaURL) + protowire.SizeBytes(len(schemaURL))
	resourceLogs := len(b.resource) + protowire.SizeTag(resourceLogsScopeLogs) + protowire.SizeBytes(scopeLogs) +
		protowire.SizeTag(resourceLogsSchemaURL) + protowire.SizeBytes(len(schemaURL))
	w := protowire.AppendTag(b.whole[:0], requestResourceLogs, protowire.BytesType)
	w = protowire.AppendVarint(w, uint64(resourceLogs))
	w = append(w, b.resource...)
	w = protowire.AppendVarint(protowire.AppendTag(w, resourceLogsScopeLogs, protowire.BytesType), uint64(scopeLogs))
	w = append(append(w, b.scope...), b.records...)
	w = appendField(w, scopeLogsSchemaURL, []byte(schemaURL))
	w = appendField(w, resourceLogsSchemaURL, []byte(schemaURL))
	b.whole = w
	out.body = b.pack(w)
	b.records, b.count, b.losses = b.records[:0], 0, nil
	return out
}

// pack compresses, where that is asked for, into memory of its own.
func (b *builder) pack(raw []byte) []byte {
	if !b.gzip {
		return bytes.Clone(raw)
	}
	var out bytes.Buffer
	if b.zip == nil {
		b.zip, _ = gzip.NewWriterLevel(&out, gzip.BestSpeed) // fails for another level
	} else {
		b.zip.Reset(&out)
	}
	_, _ = b.zip.Write(raw) // memory takes all of it
	_ = b.zip.Close()
	return bytes.Clone(out.Bytes())
}

// split makes two batches of one that is too large to be taken; nil: it has one record.
func (b *builder) split(old *batch) ([]*batch, error) {
	if old.records < 2 {
		return nil, nil
	}
	raw := old.body
	if b.gzip {
		r, err := gzip.NewReader(bytes.NewReader(raw))
		if err != nil {
			return nil, err
		}
		if raw, err = io.ReadAll(r); err != nil {
			return nil, err
		}
	}
	var req colpb.ExportLogsServiceRequest
	if err := proto.Unmarshal(raw, &req); err != nil {
		return nil, err
	}
	all := req.ResourceLogs[0].ScopeLogs[0].LogRecords
	var out []*batch
	for _, part := range [][]*logspb.LogRecord{all[:len(all)/2], all[len(all)/2:]} {
		req.ResourceLogs[0].ScopeLogs[0].LogRecords = part
		raw, err := proto.Marshal(&req)
		if err != nil {
			return nil, err
		}
		out = append(out, &batch{body: b.pack(raw), records: len(part), from: old.from, to: old.to, live: old.live})
	}
	out[0].losses = old.losses
	return out, nil
}
