"""Programs that take turns, and what else the machine did meanwhile."""
import contextlib
import json
import os
import resource
import subprocess
import tempfile
import time

HERTZ = os.sysconf("SC_CLK_TCK")
# Threads of the program before may still wait for work without sleeping.
SETTLE_SECONDS = 0.1
# When others had more of the machine, figures say nothing, and a program ends with this code.
BUSY_SHARE, BUSY_CODE = 0.1, 4


class Failed(Exception):
    pass


class Program:
    """A program of turns.py's protocol."""

    def __init__(self, command, environment):
        self.errors = tempfile.TemporaryFile("w+", errors="replace")
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self.ready = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines() or [f"it ended with {self.process.returncode}"]
            raise Failed(said[-1])
        return json.loads(line)

    def turn(self):
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # The answer that does not come tells why.
        return self.answer()

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / HERTZ

    def end(self):
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()


class Others:
    """The share of the machine's cores that went to nobody's turn, over all turns."""

    def __init__(self):
        self.busy = self.wall = 0.0

    def turn(self, program):
        """A turn of `program`, watched."""
        time.sleep(SETTLE_SECONDS)
        busy, own, begin = machine_seconds(), program.cpu_seconds(), time.monotonic()
        answer = program.turn()
        self.wall += time.monotonic() - begin
        self.busy += (machine_seconds() - busy) - (program.cpu_seconds() - own)
        return answer

    @contextlib.contextmanager
    def watch(self):
        """Programs that are started and end meanwhile are ours."""
        busy, own, begin = machine_seconds(), children_seconds(), time.monotonic()
        yield
        self.wall += time.monotonic() - begin
        self.busy += (machine_seconds() - busy) - (children_seconds() - own)

    def share(self):
        return max(0.0, self.busy / (self.wall * os.cpu_count())) if self.wall else 0.0


def children_seconds():
    """CPU seconds of the programs that ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def machine_seconds():
    """Seconds that all cores were busy; time that a host took from this machine (steal) is somebody else's work too."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _waiting, irq, soft, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + soft + steal) / HERTZ
