"""The systems that are compared: how each is started cold, pulls an image, runs it, mounts it and is ended.

This project, lazy and full; containerd with stargz-snapshotter; containerd alone; podman. All from Debian, with private
state on the disk under test. The daemons that a user would have running, run when the clock starts.
"""

import gzip
import hashlib
import io
import json
import os
import resource
import tarfile
import urllib.request

from host import (DISK, REPOSITORY, RUN, Ready, connects, daemon, drop_caches, end, kill_all, run, unmount_below, until)

SUPERVISOR = os.environ.get('SUPERVISOR', REPOSITORY + '/target/release/supervisor')
SNAPSHOTTER = REPOSITORY + '/target/bench/containerd-stargz-grpc'
RUN_DIR = RUN + '/supervisor'
SOCKET = RUN + '/containerd.sock'
NAME = 'bench'
# Control groups of containerd, podman, and this project, whose group is named after its run directory.
GROUPS = ['default', 'libpod_parent', 'supervisor-' + hashlib.sha256(RUN_DIR.encode()).hexdigest()[:8]]
COUNTER = [0]


class System:
    """Base of all. `form` is the tag of the image that it takes: `plain` is gzip, `esgz` eStargz as converted, `opt`
    eStargz with what the workload reads in front."""

    form = 'plain'

    def __init__(self, name, form=None):
        self.name = name
        self.form = form or self.form
        self.daemons = []
        self.reference = None

    def cold(self, disk, keep):
        """Nothing of it is here, nothing is cached, its daemons run. `keep`: processes that are no part of it."""
        self.end(keep)
        disk.fresh()
        self.start_daemons()
        drop_caches()

    def start_daemons(self):
        """What is running before anything is pulled."""

    def pull(self, reference):
        """The command that pulls."""
        raise NotImplementedError

    def run(self, reference, command=()):
        """The command that runs the image's workload, with the workload's output as its own."""
        raise NotImplementedError

    def stop(self):
        """Ends what `run` started."""

    def mount(self, reference):
        """The pulled image as a folder, read-only."""
        raise NotImplementedError

    def environment(self):
        return dict(os.environ)

    def end(self, keep):
        """Nothing of it runs and nothing is mounted."""
        for process in reversed(self.daemons):
            end(process)
        self.daemons = []
        try:
            kill_all(keep)
        finally:
            unmount_below(DISK)
            unmount_below(RUN_DIR)
            unmount_below(RUN + '/containerd')


class Supervisor(System):
    """This project. `up` is what a user types; `pull` before it is there because the others need one."""

    form = 'esgz'

    def __init__(self, name, form=None, full=False):
        super().__init__(name, form)
        self.full = full
        self.file = None

    def environment(self):
        return dict(os.environ, SUPERVISOR_STATE_DIR=DISK + '/supervisor', SUPERVISOR_RUN_DIR=RUN_DIR)

    def start_daemons(self):
        self.daemons = [daemon('supervisor', [SUPERVISOR, 'daemon'], self.environment())]
        until('the daemon serves', lambda: connects(RUN_DIR + '/api.sock'))

    def pull(self, reference):
        return [SUPERVISOR, 'pull', '--quiet', *(['--full'] if self.full else []), reference]

    def service(self, reference, command=()):
        """As the others are run: without a network, and without a grace when it is all over."""
        service = {'image': reference, 'network_mode': 'none', 'stop_grace_period': '0s'}
        return service | ({'command': list(command)} if command else {})

    def write_services(self, services):
        """Returns the file's path."""
        self.file = RUN + '/services.yaml'
        with open(self.file, 'w') as file:
            json.dump({'name': NAME, 'services': services}, file)
        return self.file

    def run(self, reference, command=()):
        file = self.write_services({'app': self.service(reference, command)})
        return [SUPERVISOR, 'up', '-f', file]

    def stop(self):
        if self.file:
            run([SUPERVISOR, 'down', '-f', self.file], check=False, timeout=60, env=self.environment())

    def mount(self, reference):
        point = RUN_DIR + '-image'
        os.makedirs(point, exist_ok=True)
        run([SUPERVISOR, 'image', 'mount', *(['--full'] if self.full else []), reference, point],
            env=self.environment())
        return point

    def end(self, keep):
        unmount_below(RUN_DIR + '-image')
        super().end(keep)


class Containerd(System):
    """containerd with one of its snapshotters."""

    snapshotter = 'overlayfs'

    def start_daemons(self):
        config = RUN + '/containerd.toml'
        with open(config, 'w') as file:
            file.write(f'version = 2\nroot = "{DISK}/containerd"\nstate = "{RUN}/containerd"\n'
                       'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
                       f'[grpc]\n  address = "{SOCKET}"\n'
                       f'[proxy_plugins.stargz]\n  type = "snapshot"\n  address = "{RUN}/stargz.sock"\n')
        if self.snapshotter == 'stargz':
            self.daemons.append(daemon('stargz', [SNAPSHOTTER, '--address', RUN + '/stargz.sock', '--root',
                                                  DISK + '/stargz', *self.flags]))
            until('the snapshotter serves', lambda: connects(RUN + '/stargz.sock'))
        self.daemons.append(daemon('containerd', ['containerd', '--config', config, '--log-level', 'warn']))
        until('containerd serves', lambda: connects(SOCKET))
        run(['ctr', 'version'], env=self.environment())

    flags = ()

    def environment(self):
        return dict(os.environ, CONTAINERD_ADDRESS=SOCKET)

    def pull(self, reference):
        return ['ctr', 'image', 'pull', '--plain-http', '--snapshotter', self.snapshotter, reference]

    def run(self, reference, command=()):
        COUNTER[0] += 1
        self.container = f'{NAME}-{os.getpid()}-{COUNTER[0]}'
        return ['ctr', 'run', '--rm', '--snapshotter', self.snapshotter, reference, self.container, *command]

    def stop(self):
        for command in (['task', 'kill', '-s', 'KILL'], ['task', 'rm', '-f'], ['container', 'rm']):
            run(['ctr', *command, self.container], check=False, timeout=20, env=self.environment())

    def mount(self, reference):
        chain = chain_id(reference)
        for attempt in range(8):
            COUNTER[0] += 1
            key, point = f'view-{COUNTER[0]}', f'{RUN}/containerd-image'
            os.makedirs(point, exist_ok=True)
            of_snapshots = ['ctr', 'snapshots', '--snapshotter', self.snapshotter]
            # Its collector may take a view that nothing leases before it is mounted.
            last = attempt == 7
            run([*of_snapshots, 'view', key, chain], check=last, env=self.environment())
            mount = run([*of_snapshots, 'mounts', point, key], check=last, env=self.environment())
            if not mount.returncode and not run(['sh', '-c', mount.stdout], check=last).returncode:
                return point
        raise RuntimeError('no mount')

    def end(self, keep):
        unmount_below(RUN + '/containerd-image')
        super().end(keep)


class Stargz(Containerd):
    """containerd with stargz-snapshotter."""

    form = 'esgz'
    snapshotter = 'stargz'

    def pull(self, reference):
        return ['ctr-remote', 'image', 'rpull', '--plain-http', reference]


class Podman(System):
    """podman with runc: Debian's crun refuses hosts with both versions of cgroups."""

    def base(self):
        return ['podman', '--runtime', 'runc', '--cgroup-manager', 'cgroupfs', '--root', DISK + '/podman', '--runroot',
                RUN + '/podman', '--storage-driver', 'overlay']

    def environment(self):
        files = {'storage.conf': f'[storage]\ndriver = "overlay"\ngraphroot = "{DISK}/podman"\n'
                                 f'runroot = "{RUN}/podman"\n',
                 'containers.conf': '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
                                    '[containers]\nlog_driver = "none"\n',
                 'policy.json': '{"default": [{"type": "insecureAcceptAnything"}]}'}
        for name, text in files.items():
            with open(f'{RUN}/{name}', 'w') as file:
                file.write(text)
        return dict(os.environ, CONTAINERS_STORAGE_CONF=RUN + '/storage.conf', CONTAINERS_CONF=RUN + '/containers.conf',
                    TMPDIR=DISK)

    def pull(self, reference):
        return [*self.base(), 'pull', '-q', '--tls-verify=false', '--signature-policy', RUN + '/policy.json', reference]

    def run(self, reference, command=()):
        COUNTER[0] += 1
        self.container = f'{NAME}-{os.getpid()}-{COUNTER[0]}'
        # It asks for more than a root without CAP_SYS_RESOURCE may raise.
        limits = [f'--ulimit={name}={min(20000, limit)}:{min(20000, limit)}'
                  for name, kind in (('nofile', resource.RLIMIT_NOFILE), ('nproc', resource.RLIMIT_NPROC))
                  for limit in [resource.getrlimit(kind)[1]] if limit >= 0]
        return [*self.base(), 'run', '--rm', '--name', self.container, '--pull=never', '--network=none',
                '--log-driver=none', *limits, reference, *command]

    def stop(self):
        run([*self.base(), 'rm', '-f', '-t', '0', self.container], check=False, timeout=60, env=self.environment())


def fetch(registry, repository, path, part=None):
    headers = {'Accept': 'application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json'}
    if part:
        headers['Range'] = 'bytes=' + part
    request = urllib.request.Request(f'http://{registry}/v2/{repository}/{path}', headers=headers)
    return urllib.request.urlopen(request).read()


def manifest(reference):
    """Registry, repository, bytes and content of the image manifest."""
    registry, rest = reference.split('/', 1)
    repository, tag = rest.rsplit(':', 1)
    raw = fetch(registry, repository, 'manifests/' + tag)
    parsed = json.loads(raw)
    if 'manifests' in parsed:
        raw = fetch(registry, repository, 'manifests/' + parsed['manifests'][0]['digest'])
        parsed = json.loads(raw)
    return registry, repository, raw, parsed


def needed_bytes(reference):
    """Manifest, config, tables of contents, and what the workload was recorded to read: what no lazy start can spare."""
    registry, repository, raw, parsed = manifest(reference)
    total = len(raw) + parsed['config']['size']
    for layer in parsed['layers']:
        blob, size = 'blobs/' + layer['digest'], layer['size']
        footer = fetch(registry, repository, blob, f'{size - 51}-{size - 1}')
        start = int(footer[16:32], 16)
        packed = gzip.decompress(fetch(registry, repository, blob, f'{start}-{size - 52}'))
        contents = tarfile.open(fileobj=io.BytesIO(packed)).extractfile('stargz.index.json').read()
        landmarks = [entry['offset'] for entry in json.loads(contents)['entries']
                     if entry['name'] == '.prefetch.landmark']
        total += size - start + sum(landmarks)
    return total


def chain_id(reference):
    """Of the image's last layer."""
    registry, repository, _, parsed = manifest(reference)
    chain = ''
    for diff in json.loads(fetch(registry, repository, 'blobs/' + parsed['config']['digest']))['rootfs']['diff_ids']:
        chain = diff if not chain else 'sha256:' + hashlib.sha256(f'{chain} {diff}'.encode()).hexdigest()
    return chain


ALL = {
    'lazy': lambda: Supervisor('lazy'),
    'lazy-opt': lambda: Supervisor('lazy-opt', 'opt'),
    'full': lambda: Supervisor('full', 'plain', full=True),
    'stargz': lambda: Stargz('stargz'),
    'stargz-opt': lambda: Stargz('stargz-opt', 'opt'),
    'containerd': lambda: Containerd('containerd'),
    'podman': lambda: Podman('podman'),
}
