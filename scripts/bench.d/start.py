"""From nothing to ready, and ready once more: how long a workload takes to its own ready line."""

import contextlib
import json
import os
import time

import host
import systems


# All content of an image, as a backup or a scanner reads it.
READ_ALL = ['/bin/sh', '-c', 'find / -xdev -type f -exec cat {} + >/dev/null 2>&1; echo READY; sleep 3600']


def everything(bench, system, image, link_name):
    """The same with a workload that reads every file before it is ready: what a lazy image is worst at."""
    return cold(bench, system, image, link_name, READ_ALL) | {'what': 'everything'}


def cold(bench, system, image, link_name, command=()):
    """Pull and run with nothing here. The clock starts with the pull command."""
    log = f'{host.RUN}/requests.jsonl'
    record = {'what': 'cold', 'image': image, 'link': link_name, 'system': system.name, 'load': os.getloadavg()[0]}
    start = 0
    try:
        with bench.linked(system, link_name, log) as (link, keep):
            reference = f'{link.address}/{image}:{system.form}'
            system.cold(bench.disk, keep)
            environment = system.environment()
            used = host.processor_seconds(keep)
            start = time.time()
            pulled = host.run(system.pull(reference), check=False, env=environment)
            record['pull_s'] = time.time() - start
            record['pull_cpu_s'] = host.processor_seconds(keep) - used
            at_pull = link.stats()
            record.update(pull_requests=at_pull['requests'], pull_bytes=at_pull['body_bytes'])
            if pulled.returncode:
                record['error'] = pulled.stdout[-600:]
                return record
            with ready_once(system, system.run(reference, command), environment) as ready:
                at_ready = link.stats()
                if ready.at is None:
                    record['error'] = ready.error
                    return record
                record.update(ready_s=ready.at - start, run_s=ready.at - ready.start, requests=at_ready['requests'],
                              bytes=at_ready['body_bytes'], connections=at_ready['connections'],
                              cpu_s=host.processor_seconds(keep) - used, memory=host.memory(keep))
            return record
    finally:
        bench.keep_log(log, record, start)


@contextlib.contextmanager
def ready_once(system, command, environment, count=1):
    """What `command` starts, when it is ready; stopped afterwards."""
    ready = host.Ready(command, environment, count=count)
    try:
        yield ready
    finally:
        system.stop()
        ready.finish()


def room(bench, link_name, names):
    """Ten services of several images at once; ready when the last one is."""
    system = systems.Supervisor('lazy')
    record = {'what': 'room', 'image': '+'.join(names), 'link': link_name, 'system': system.name,
              'load': os.getloadavg()[0]}
    with bench.linked(system, link_name) as (link, keep):
        system.cold(bench.disk, keep)
        images = [names[number % len(names)] for number in range(10)]
        file = system.write_services({f'{image}{number}': system.service(f'{link.address}/{image}:{system.form}')
                                      for number, image in enumerate(images)})
        command = [systems.SUPERVISOR, 'up', '-f', file]
        with ready_once(system, command, system.environment(), len(images)) as ready:
            at_ready = link.stats()
            record.update(error=ready.error, requests=at_ready['requests'], bytes=at_ready['body_bytes'],
                          memory=host.memory(keep))
            if ready.at:
                record['ready_s'] = ready.at - ready.start
        return record


def warm(bench, image, count):
    """Once more, with all that is needed here: this project, containerd and podman, and runtimes on a bare bundle.
    All of them on one disk, in turn; the command only says READY."""
    command = ['/bin/sh', '-c', 'echo READY']
    keep = {bench.registry.process.pid}
    ours = systems.Supervisor('supervisor start')
    stargz, native, podman = systems.Stargz('stargz'), systems.Containerd('containerd'), systems.Podman('podman')
    registry = bench.registry.address
    with contextlib.ExitStack() as afterwards:
        for system in (ours, stargz, podman):
            afterwards.callback(system.end, keep)
        afterwards.callback(ours.stop)
        ours.cold(bench.disk, keep)
        stargz.start_daemons()
        for system in (ours, stargz, native, podman):
            host.run(system.pull(f'{registry}/{image}:{system.form}'), env=system.environment())
        bundle = make_bundle(native.mount(f'{registry}/{image}:plain'), command)
        # Another service, so that control, keeper and worker have something to do all the time.
        file = ours.write_services({'app': ours.service(f'{registry}/{image}:esgz', command),
                                    'idle': ours.service(f'{registry}/{image}:esgz', ['sleep', '1000000'])})
        host.run([systems.SUPERVISOR, 'up', '-d', '-f', file], env=ours.environment())
        name = f'{systems.NAME}-bundle'
        # crun refuses a host with both versions of cgroups: the second is hidden from it.
        hide = f'umount /sys/fs/cgroup/unified 2>/dev/null; exec crun --root {host.RUN}/crun run -b {bundle} {name}'
        others = {
            'crun, a bundle': lambda: ['unshare', '-m', 'sh', '-c', hide],
            'runc, a bundle': lambda: ['runc', '--root', host.RUN + '/runc', 'run', '-b', bundle, name],
            'ctr run, stargz': lambda: stargz.run(f'{registry}/{image}:esgz', command),
            'ctr run, overlayfs': lambda: native.run(f'{registry}/{image}:plain', command),
            'podman run, runc': lambda: podman.run(f'{registry}/{image}:plain', command),
        }
        environment = podman.environment() | native.environment()
        for number in range(count + 1):
            record = {'what': 'warm', 'image': image, 'load': os.getloadavg()[0], 'system': 'supervisor start'}
            taken = start_stopped(ours, file)
            if number:
                bench.record(record | taken)
            for other, make in others.items():
                ready = host.Ready(make(), environment, 30)
                ready.process.wait(30)
                ready.finish()
                if number:
                    bench.record(record | {'system': other, 'error': ready.error,
                                           'ready_ms': ready.at and 1000 * (ready.at - ready.start)})


def start_stopped(system, file):
    """Milliseconds from the exec of `supervisor start` to the line in the service's log, and to the command's end."""
    log = f'{host.DISK}/supervisor/logs/{systems.NAME}/app/log.json'
    # It has ended by itself.
    host.until('the service ended', lambda: '"exited"' in host.run(
        [systems.SUPERVISOR, 'ps', '-f', file, '--format', 'json'], env=system.environment()).stdout)
    before = os.stat(log).st_size
    began = time.time()
    command = host.daemon('start', [systems.SUPERVISOR, 'start', '-f', file, 'app'], system.environment())
    host.until('the service is ready', lambda: os.stat(log).st_size > before, pause=0.0002)
    ready = time.time()
    command.wait(30)
    return {'ready_ms': 1000 * (ready - began), 'command_ms': 1000 * (time.time() - began)}


def make_bundle(mounted, command):
    """An OCI bundle with a copy of a root file system, and the runtime's own default configuration."""
    bundle = host.DISK + '/bundle'
    os.makedirs(bundle + '/rootfs')
    host.run(['cp', '-a', mounted + '/.', bundle + '/rootfs/'])
    host.run(['umount', mounted])
    host.run(['runc', 'spec', '-b', bundle])
    with open(bundle + '/config.json') as file:
        config = json.load(file)
    config['process'] |= {'terminal': False, 'args': command, 'rlimits': []}
    with open(bundle + '/config.json', 'w') as file:
        json.dump(config, file)
    return bundle
