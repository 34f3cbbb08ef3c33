package tracer

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/cilium/ebpf/link"
)

// DeviceID says which network device a socket is bound to: the index of one counts in its
// namespace alone.
type DeviceID struct {
	NetNS       uint32 // inode number of the namespace
	NetNSCookie uint64 // its cookie; 0 before Linux 5.12
	Index       uint32
}

// DeviceID is the device of a socket; Index 0: it is bound to none.
func (s *Socket) DeviceID() DeviceID { return DeviceID{s.NetNS, s.NetNSCookie, s.Device} }

// DeviceID is the device of an event's socket; Index 0: it is bound to none.
func (ev *Event) DeviceID() DeviceID { return DeviceID{ev.NetNS, ev.NetNSCookie, ev.Device} }

// Devices are the names of the network devices of every namespace, as they were when they
// were read. A name is up to 15 bytes, of which the kernel forbids but '/', ':', '%' and spaces.
type Devices map[DeviceID]string

// Name is the name of a device; "": there was none.
func (d Devices) Name(id DeviceID) string { return d[id] }

// Index is the index of a device of a namespace, given by its name or by its index; 0: the
// namespace has none such.
func (d Devices) Index(netns uint32, name string) uint32 {
	number, err := strconv.ParseUint(name, 10, 32)
	byNumber := uint32(0)
	for id, known := range d {
		switch {
		case id.NetNS != netns:
		case known == name:
			return id.Index // a name wins over a number
		case err == nil && id.Index == uint32(number):
			byNumber = id.Index
		}
	}
	return byNumber
}

// deviceReader is the program that reads Devices, loaded when it is first needed: sockets
// that are bound to a device are rare.
type deviceReader struct {
	mu   sync.Mutex
	load func() (*link.Iter, error) // nil: not any more
	it   *link.Iter
}

// open loads the program, once.
func (r *deviceReader) open() error {
	if r.it != nil {
		return nil
	}
	if r.load == nil {
		return errors.New("read network devices: the program is not loaded")
	}
	var err error
	if r.it, err = r.load(); err != nil {
		return explain("load snapshot programs", err)
	}
	r.load = nil
	return nil
}

// forget is open, and frees what loading takes.
func (r *deviceReader) forget() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.open()
	r.load = nil
	return err
}

// Devices reads the names of the network devices of every namespace. It blocks for some
// 100 ns per device. It is safe for concurrent use.
func (s *Snapshotter) Devices() (Devices, error) {
	out := make(Devices)
	_, err := s.readDevices(func(row *bpfDeviceRow) {
		name, _, _ := bytes.Cut(row.Name[:], []byte{0})
		out[DeviceID{row.Netns, row.Cookie, row.Index}] = string(name)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// readDevices calls add with every network device there is, with one more than once if its namespace
// changes meanwhile: the last counts.
func (s *Snapshotter) readDevices(add func(*bpfDeviceRow)) (*bpfDevicesCursor, error) {
	s.devices.mu.Lock()
	defer s.devices.mu.Unlock()
	if err := s.devices.open(); err != nil {
		return nil, err
	}
	it, err := s.devices.it.Open()
	if err != nil {
		return nil, explain("open iter/task", err)
	}
	defer it.Close()
	var cursor bpfDevicesCursor
	state, rows := s.maps.Variables[snapshotVarDevicesCursor], s.deviceRows
	for cursor.Done == 0 {
		cursor.Rows = 0
		if err := state.Set(&cursor); err != nil {
			return nil, fmt.Errorf("prepare walk of network devices: %w", err)
		}
		// The program asks to be called again, so the iterator stays where it is.
		if _, err := it.Read(make([]byte, 1)); !errors.Is(err, syscall.EAGAIN) {
			return nil, fmt.Errorf("read network devices: %w, want %w", err, syscall.EAGAIN)
		}
		if err := state.Get(&cursor); err != nil {
			return nil, fmt.Errorf("read walk of network devices: %w", err)
		}
		found := make([]bpfDeviceRow, cursor.Rows)
		if err := readMemory(rows, 0, found); err != nil {
			return nil, fmt.Errorf("read network devices: %w", err)
		}
		for i := range found {
			add(&found[i])
		}
	}
	return &cursor, nil
}

// deviceNames keeps what Devices read for a short while, for events that come one by one.
// It is safe for concurrent use.
type deviceNames struct {
	read func() (Devices, error)

	mu    sync.Mutex
	names Devices
	at    time.Time
}

const (
	// namesServe is how long a name serves: a device may be renamed.
	namesServe = time.Second
	// noNameServes is how long it serves that there is none: a device may be new.
	noNameServes = 50 * time.Millisecond
)

// name is the name of a device; "": it has none now.
func (d *deviceNames) name(id DeviceID) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	age := time.Since(d.at)
	name, ok := d.names[id]
	if ok && age < namesServe || !ok && age < noNameServes {
		return name
	}
	names, err := d.read()
	if err != nil {
		names = nil // nothing is better than what may be wrong by now
	}
	d.names, d.at = names, time.Now()
	return d.names[id]
}

// DeviceName is the name a network device has now, as it was read at most a second ago; ""
// where it is not known. It may block as Snapshotter.Devices does.
func (t *Tracer) DeviceName(id DeviceID) string { return t.devices.name(id) }
