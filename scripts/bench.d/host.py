"""What a measurement stands on: a fresh disk, a slow link before a registry, clocks and counters of processes.

Everything runs in a mount and a PID namespace of its own: when their first process ends, however it ends, the kernel
kills what was started and takes the mounts, and the loop device with its unlinked file, back.
"""

import ctypes
import json
import os
import resource
import select
import signal
import socket
import statistics
import subprocess
import time

REPOSITORY = os.path.realpath(os.path.join(os.path.dirname(__file__), '..', '..'))
# Where daemons keep sockets and small state: a tmpfs that hides the host's.
RUN = '/run/supervisor-bench'
DISK = RUN + '/disk'
IN_MEMORY = RUN + '/memory'
# Round trip in ms, Mbit/s (0: unlimited).
LINKS = {'loop': (0, 0), '1g5': (5, 1000), '100m20': (20, 100)}


def note(text):
    print(text, file=os.sys.stderr, flush=True)


def run(command, check=True, timeout=900, **options):
    """Runs a command; its output is in the result, and in the error when it fails."""
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, errors='replace', timeout=timeout, **options)
    if check and result.returncode:
        raise RuntimeError(f'{command} failed with {result.returncode}: {result.stdout[-1500:]}')
    return result


def until(what, condition, seconds=30, pause=0.01):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f'waited too long until {what}')
        time.sleep(pause)


def drop_caches():
    os.sync()
    with open('/proc/sys/vm/drop_caches', 'w') as control:
        control.write('3')


class Disk:
    """An ext4 with a journal in a file that has no name any more. On a disk without a journal, file creation slows down
    ten times once many files were deleted; so each measurement gets a file system without a past."""

    def __init__(self, folder, gigabytes):
        file = os.path.join(folder, f'.bench-disk-{os.getpid()}-{int(time.time())}')
        try:
            with open(file, 'wb') as image:
                os.posix_fallocate(image.fileno(), 0, gigabytes << 30)
            # Direct: else each byte is cached twice, and what is dropped from one cache comes out of the other.
            self.device = run(['losetup', '--find', '--show', '--direct-io=on', file]).stdout.strip()
        finally:
            os.unlink(file)
        self.held = os.open(self.device, os.O_RDONLY)
        # Taken back by the kernel when nothing holds it any more.
        run(['losetup', '--detach', self.device])

    def fresh(self):
        """An empty file system at DISK, whatever was there."""
        unmount_below(DISK)
        # No thread of the kernel that goes on initializing it while something is measured.
        run(['mkfs.ext4', '-q', '-F', '-E', 'lazy_itable_init=1,nodiscard', '-i', '8192', self.device])
        os.makedirs(DISK, exist_ok=True)
        run(['mount', '-o', 'noatime,noinit_itable', self.device, DISK])

    def close(self):
        unmount_below(DISK)
        os.close(self.held)


def unmount_below(folder):
    """Everything at and below a folder, the last mount first."""
    with open('/proc/self/mounts') as mounts:
        points = [line.split()[1].encode().decode('unicode_escape') for line in mounts]
    for point in reversed([p for p in points if p == folder or p.startswith(folder + '/')]):
        run(['umount', '-l', point], check=False)


class Link:
    """The link emulator (integration/bench/link.rs) before a registry."""

    def __init__(self, program, server, name, log=None):
        round_trip, megabits = LINKS[name]
        command = [program, server, str(round_trip), str(megabits)] + ([log] if log else [])
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.address = self.process.stdout.readline().strip()

    def stats(self):
        self.process.stdin.write('stats\n')
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class Registry:
    """Debian's docker-registry, whose storage is in memory: the far end shall not cost disk time."""

    def __init__(self, storage, port=0):
        self.port = port or free_port()
        config = os.path.join(RUN, f'registry-{self.port}.yml')
        with open(config, 'w') as file:
            file.write(f'version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n'
                       f'storage: {{filesystem: {{rootdirectory: {storage}, maxthreads: 100}}, '
                       f'maintenance: {{uploadpurging: {{enabled: false}}}}}}\n'
                       f'http: {{addr: "127.0.0.1:{self.port}"}}\n')
        self.process = daemon('registry', ['docker-registry', 'serve', config])
        self.address = f'127.0.0.1:{self.port}'
        until('the registry listens', lambda: connects(('127.0.0.1', self.port)))

    def close(self):
        end(self.process)


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def connects(address):
    kind = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(kind) as client:
        return client.connect_ex(address) == 0


def daemon(name, command, environment=None):
    """Starts a process that goes on, with its output in a log."""
    os.makedirs(RUN + '/log', exist_ok=True)
    with open(f'{RUN}/log/{name}.log', 'ab') as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                env=environment)


def end(process, number=signal.SIGTERM, seconds=10):
    """Ends a process that `daemon` started."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Ready:
    """Starts a command and waits until READY is in its output, so often. `at` is when, or None; `error` is what it said
    then."""

    def __init__(self, command, environment=None, seconds=200, count=1):
        self.start = time.time()
        self.at = self.error = None
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, start_new_session=True, env=environment)
        said, limit = b'', self.start + seconds
        while time.time() < limit:
            if not select.select([self.process.stdout], [], [], 0.5)[0]:
                continue
            some = os.read(self.process.stdout.fileno(), 65536)
            said += some
            if said.count(b'READY') >= count:
                self.at = time.time()
                break
            if not some:
                break
        if self.at is None:
            self.error = said[-1500:].decode('utf8', 'replace')

    def finish(self):
        self.process.stdout.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def everything(without):
    """Ids of the processes of this PID namespace, and of those below it, without init, the driver and some others."""
    numbers = (int(name) for name in os.listdir('/proc') if name.isdigit())
    return [number for number in numbers if number not in (1, os.getpid()) and number not in without]


def processes(without):
    """The same without what runs in containers."""
    own = os.readlink('/proc/self/ns/pid')
    found = []
    for number in everything(without):
        try:
            if os.readlink(f'/proc/{number}/ns/pid') == own:
                found.append(number)
        except OSError:
            # Gone.
            continue
    return found


def processor_seconds(without):
    """User and system time of living processes and of the children that they waited for."""
    ticks = 0
    for number in processes(without):
        try:
            with open(f'/proc/{number}/stat') as file:
                fields = file.read().rsplit(')', 1)[1].split()
            ticks += sum(int(fields[n]) for n in (11, 12, 13, 14))
        except OSError:
            continue
    of_children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ticks / os.sysconf('SC_CLK_TCK') + of_children.ru_utime + of_children.ru_stime


def memory(without):
    """MB of all processes: anonymous and shared memory in proportion (what cannot be dropped), and resident."""
    kept = resident = 0
    roles = {}
    for number in processes(without):
        try:
            with open(f'/proc/{number}/smaps_rollup') as file:
                lines = dict(line.split()[:2] for line in list(file)[1:])
            with open(f'/proc/{number}/cmdline') as file:
                words = file.read().split('\0')
        except (OSError, ValueError):
            continue
        own = int(lines.get('Pss_Anon:', 0)) + int(lines.get('Pss_Shmem:', 0))
        kept += own
        resident += int(lines.get('Rss:', 0))
        role = words[1] if words[0].endswith('supervisor-role') else os.path.basename(words[0])
        roles[role] = round(roles.get(role, 0) + own / 1024, 1)
    return {'kept_mb': round(kept / 1024, 1), 'resident_mb': round(resident / 1024, 1), 'roles': roles}


def kill_all(without):
    """Every process but the driver and some others, each by its id: this namespace has no strangers."""
    for _ in range(100):
        left = [number for number in everything(without) if not has_ended(number)]
        if not left:
            return
        for number in left:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.05)
    raise RuntimeError('cannot be killed: ' + ', '.join(f'{number} ({name_of(number)})' for number in left))


def has_ended(number):
    """Whether a process is gone, or waits for its parent."""
    try:
        with open(f'/proc/{number}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0] in 'ZX'
    except OSError:
        return True


def name_of(number):
    try:
        with open(f'/proc/{number}/comm') as file:
            return file.read().strip()
    except OSError:
        return 'gone'


class Groups:
    """Control groups that the systems leave behind: not part of any namespace, so they are removed by name. Those that
    were there before are somebody else's."""

    def __init__(self, names):
        self.paths = [path for hierarchy in os.scandir('/sys/fs/cgroup') if hierarchy.is_dir()
                      for name in names for path in [f'{hierarchy.path}/{name}'] if not os.path.exists(path)]

    def remove(self):
        for path in self.paths:
            for folder, _, _ in os.walk(path, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    # A process is in it: not ours.
                    continue


def hide_run():
    """An empty /run in this mount namespace: daemons with fixed paths there do not meet those of the host."""
    libc = ctypes.CDLL(None, use_errno=True)
    for source, point in (('run', '/run'),):
        if libc.mount(source.encode(), point.encode(), b'tmpfs', 0, b'mode=755'):
            raise OSError(ctypes.get_errno(), f'mount {point}')
    for folder in ('/run/lock', DISK, IN_MEMORY):
        os.makedirs(folder, exist_ok=True)
    run(['mount', '-t', 'tmpfs', '-o', 'size=90%', 'memory', IN_MEMORY])


def median(values):
    return statistics.median(values) if values else None
