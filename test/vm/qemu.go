package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/porthole-dev/porthole/test/vm/guest"
)

// machine is how qemu is started for an architecture. The TCG flags are those
// that were stable: with more than one CPU, or with cmpxchg16b, qemu 7.2 crashes
// newer kernels.
type machine struct {
	command, console string
	args             []string // of both
	tcg, kvm         []string // of either
}

var machines = map[string]machine{
	"amd64": {
		command: "qemu-system-x86_64", console: "ttyS0",
		tcg: []string{"-cpu", "qemu64,-cx16"},
		kvm: []string{"-cpu", "host"},
	},
	"arm64": {
		command: "qemu-system-aarch64", console: "ttyAMA0",
		args: []string{"-M", "virt"},
		tcg:  []string{"-cpu", "cortex-a72"},
		kvm:  []string{"-cpu", "host"},
	},
}

// bootFlags keep the boot short, and end the VM when the kernel panics. It
// panics when it oopses. Warnings are shown, for they fail the run.
const bootFlags = "loglevel=5 panic=-1 oops=panic mitigations=off audit=0 nokaslr"

// vm is one run of a kernel.
type vm struct {
	arch            string
	vmlinuz, initrd string
	flags           string // for the kernel
	kvm             bool
	memory          string
	disk            string    // path of the image of /dev/vda; "": there is none
	forward         string    // address here that leads to guest.Metrics of a machine with a network; "": it has none
	monitor         string    // path of a socket that takes commands for qemu, of a machine with a network
	counting        bool      // its clock counts instructions, a nanosecond each
	console         io.Writer // gets the console and the messages too, or nil
}

// run boots the machine, hands over every message and returns the console when
// the machine is off.
func (v *vm) run(ctx context.Context, each func(guest.Message)) (string, error) {
	m := machines[v.arch]
	messages, port, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer messages.Close()
	defer port.Close()
	var console strings.Builder
	cmd := exec.CommandContext(ctx, m.command, v.args(m)...)
	cmd.Stdout = &console
	if v.console != nil {
		cmd.Stdout = io.MultiWriter(&console, v.console)
	}
	cmd.Stderr = cmd.Stdout
	cmd.ExtraFiles = []*os.File{port}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	port.Close() // now qemu's alone, so that its end is the end of the messages
	broken := v.read(messages, each)
	err = cmd.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return console.String(), errors.Join(broken, err)
}

// read reads the messages to their end.
func (v *vm) read(messages io.Reader, each func(guest.Message)) error {
	lines := bufio.NewReader(messages)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil { // what is no line ended with the machine
			return nil
		}
		var m guest.Message
		if err := json.Unmarshal(line, &m); err != nil {
			_, _ = io.Copy(io.Discard, lines) // not to block the machine
			return fmt.Errorf("read message %q: %w", line, err)
		}
		if v.console != nil && m.Output != "" {
			fmt.Fprintf(v.console, "%s: %s\n", m.Job, m.Output)
		}
		each(m)
	}
}

func (v *vm) args(m machine) []string {
	cpu := append([]string{"-accel", "tcg"}, m.tcg...)
	if v.kvm {
		cpu = append([]string{"-accel", "kvm"}, m.kvm...)
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-smp", "1", "-m", v.memory,
		"-kernel", v.vmlinuz, "-initrd", v.initrd,
		"-append", "console=" + m.console + " " + bootFlags + " " + v.flags,
		"-serial", "stdio",
		"-device", "virtio-serial-pci",
		"-chardev", "file,id=messages,path=/dev/fd/3", // ExtraFiles start at 3
		"-device", "virtserialport,chardev=messages,name=" + guest.Port,
	}
	if v.disk != "" {
		args = append(args, "-drive", "if=virtio,format=raw,file="+v.disk)
	}
	if v.forward != "" {
		args = append(args, "-netdev", "user,id="+netdev+",ipv6=off,hostfwd=tcp:"+v.forward+"-"+guest.Address+":"+guest.Metrics,
			"-device", "virtio-net-pci,romfile=,netdev="+netdev, "-monitor", "unix:"+v.monitor+",server=on,wait=off")
	}
	if v.counting {
		args = append(args, "-icount", "shift=0,sleep=off")
	}
	return append(append(args, m.args...), cpu...)
}

// netdev is what qemu calls the network of a machine.
const netdev = "net0"

// setLink plugs the network cable of a running machine in, or out.
func setLink(monitor string, on bool) error {
	conn, err := net.DialTimeout("unix", monitor, time.Minute)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	state := map[bool]string{true: "on", false: "off"}[on]
	if _, err := fmt.Fprintf(conn, "set_link %s %s\ninfo network\n", netdev, state); err != nil {
		return err
	}
	for lines := bufio.NewReader(conn); ; { // what it says to the second command comes after the first is done
		line, err := lines.ReadString('\n')
		if err != nil {
			return fmt.Errorf("qemu does not say that the link is %s: %w", state, err)
		}
		if strings.Contains(line, "type=user") {
			return nil
		}
	}
}

// trouble matches what the kernel says when it is broken.
var trouble = regexp.MustCompile(`BUG:|WARNING:|Oops|Kernel panic|general protection fault|Unable to handle kernel`)

// kernelTrouble returns the part of a console that tells of a broken kernel.
func kernelTrouble(console string) string {
	at := trouble.FindStringIndex(console)
	if at == nil {
		return ""
	}
	start := strings.LastIndexByte(console[:at[0]], '\n') + 1
	return firstLines(console[start:], 60)
}
