package store

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// file is a segment in the directory.
type file struct {
	class class
	seq   uint64
	path  string
	size  int64
}

const suffix = ".seg"

func pathOf(dir string, c class, seq uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s-%016x%s", classNames[c], seq, suffix))
}

// list returns the segments of a directory, the oldest first.
func list(dir string) ([]file, error) {
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	var files []file
	for _, d := range all {
		name, ok := strings.CutSuffix(d.Name(), suffix)
		if !ok || !d.Type().IsRegular() {
			continue
		}
		word, number, _ := strings.Cut(name, "-")
		c := slices.Index(classNames[:], word)
		seq, err := strconv.ParseUint(number, 16, 64)
		if c < 0 || err != nil {
			continue
		}
		info, err := d.Info()
		if err != nil {
			continue // it is gone
		}
		files = append(files, file{class(c), seq, filepath.Join(dir, d.Name()), info.Size()})
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(a.seq, b.seq) })
	return files, nil
}

// ErrInUse tells that another agent writes into the directory.
var ErrInUse = errors.New("another agent keeps its history there")

// lockDir makes the directory, if need be, and takes its lock.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the history: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the history: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, fmt.Errorf("lock the history in %s: %w", dir, err)
	}
	return f, nil
}

// inUse tells whether an agent writes into the directory now.
func inUse(dir string) bool {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// syncDir has the names in a directory be there after a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// readIndex reads how a finished segment ends; false: it is not finished, or damaged.
func readIndex(path string, x *index, buf []byte) ([]byte, bool) {
	f, err := os.Open(path)
	if err != nil {
		return buf, false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() < headerSize+blockHead+indexSize {
		return buf, false
	}
	buf = slices.Grow(buf[:0], blockHead+indexSize)[:blockHead+indexSize]
	if _, err := f.ReadAt(buf, info.Size()-int64(len(buf))); err != nil {
		return buf, false
	}
	return buf, parseIndex(buf, x)
}

// readHead reads the header of a segment.
func readHead(path string) (header, error) {
	f, err := os.Open(path)
	if err != nil {
		return header{}, err
	}
	defer f.Close()
	var b [headerSize]byte
	if _, err := io.ReadFull(f, b[:]); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return header{}, err
	}
	return parseHeader(b[:])
}

// readFile reads a segment into buf, as far as it goes; upTo bounds that where it is not negative.
func readFile(path string, buf []byte, upTo int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return buf[:0], err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return buf[:0], err
	}
	size := info.Size()
	if upTo >= 0 {
		size = min(size, upTo)
	}
	if size > maxFile {
		return buf[:0], fmt.Errorf("%s: %d bytes: %w", path, size, errNotSegment)
	}
	buf = slices.Grow(buf[:0], int(size))[:size]
	n, err := f.ReadAt(buf, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return buf[:n], err
}

// maxFile is more than any segment has.
const maxFile = 16 << 20

func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// Readable tells whether there is a history in a directory that this process may read.
func Readable(dir string) error {
	if dir == "" {
		return fs.ErrNotExist
	}
	files, err := list(dir)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("read history: %s: %w", dir, fs.ErrNotExist)
	}
	f, err := os.Open(files[len(files)-1].path)
	if err != nil {
		return fmt.Errorf("read history: %w", err)
	}
	return f.Close()
}
