"""Driver of scripts/bench: plans, measures in alternation, writes JSON lines and tables. See `--help`."""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
import time

import files
import host
import images
import report
import start
import systems

EPILOG = """
systems: lazy (this project on eStargz as ctr-remote converted it), lazy-opt (the same with a prefetch list),
  full (this project, gzip layers unpacked), stargz, stargz-opt (containerd + stargz-snapshotter on the same two
  images), containerd, podman (full pulls of the gzip layers).
Systems alternate within a run, so quote ratios of one run and medians over runs.
"""


class Bench:
    """What all measurements of one invocation share."""

    def __init__(self, options):
        self.options = options
        self.link_program = host.REPOSITORY + '/target/bench/link'
        self.results = options.output
        os.makedirs(self.results, exist_ok=True)
        self.records = []
        self.failures = 0
        self.disk = host.Disk(options.scratch, options.disk_gb)
        self.registry = None

    def start(self):
        storage = host.IN_MEMORY + '/registry'
        if self.options.registry:
            storage = self.options.registry
        else:
            images.make(self.options.images.split(','))
            shutil.copytree(images.STORAGE, storage)
        self.registry = host.Registry(storage)

    @contextlib.contextmanager
    def linked(self, system, name, log=None):
        """A link before the registry, and the ids of what is no part of a system; in the end nothing of that runs."""
        link = host.Link(self.link_program, self.registry.address, name, log)
        keep = {self.registry.process.pid, link.process.pid}
        try:
            yield link, keep
        finally:
            try:
                system.end(keep)
            finally:
                link.close()

    def record(self, record):
        self.failures += bool(record.get('error'))
        record['at'] = time.strftime('%H:%M:%S')
        self.records.append(record)
        with open(self.results + '/results.jsonl', 'a') as file:
            file.write(json.dumps(record) + '\n')
        shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in record.items()
                 if key != 'memory'}
        host.note(json.dumps(shown))

    def keep_log(self, log, record, began):
        """Keeps the requests of the last run, with times from the start of the pull."""
        if not os.path.exists(log):
            return
        name = '-'.join(('requests', record['image'], record['link'], record['system']))
        with open(log) as lines, open(f'{self.results}/{name}.jsonl', 'w') as kept:
            for line in sorted((json.loads(line) for line in lines), key=lambda line: line['at']):
                for key in ('at', 'first', 'end'):
                    line[key] = round(line[key] - began, 4)
                line['path'] = line['path'].rsplit('sha256:', 1)[-1][:12]
                kept.write(json.dumps(line) + '\n')


def parse():
    parser = argparse.ArgumentParser(prog='scripts/bench', epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description='Measures this project beside containerd, stargz-snapshotter and '
                                                 'podman, in alternation.')
    parser.add_argument('--images', default='small,python,node,ml,text')
    parser.add_argument('--links', default='100m20,1g5,loop', help='of ' + ', '.join(host.LINKS))
    parser.add_argument('--systems', default='lazy,lazy-opt,full,stargz,stargz-opt,containerd,podman')
    parser.add_argument('--runs', type=int, default=5)
    parser.add_argument('--parts', default='cold,everything,room,files,warm', help='what to measure')
    parser.add_argument('--quick', action='store_true', help='small and python, two links, one run: some minutes')
    parser.add_argument('--output', default=host.REPOSITORY + '/target/bench/results')
    parser.add_argument('--registry', help='storage of a docker-registry that has the images already')
    parser.add_argument('--scratch', default=host.REPOSITORY + '/target/bench', help='where the disk image goes')
    parser.add_argument('--disk-gb', type=int, default=8)
    options = parser.parse_args()
    if options.quick:
        options.images, options.links, options.runs = 'small,python', '100m20,loop', 1
    return options


def main():
    options = parse()
    # A background job is born with it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    host.hide_run()
    os.makedirs(options.scratch, exist_ok=True)
    groups = host.Groups(systems.GROUPS)
    try:
        bench = Bench(options)
        bench.start()
        measure(bench, options)
        shutil.copytree(host.RUN + '/log', bench.results + '/log', dirs_exist_ok=True)
        print(report.tables(bench.records))
        if bench.failures:
            sys.exit(f'{bench.failures} measurements failed; {bench.results} has the logs')
    finally:
        try:
            host.kill_all(())
        finally:
            groups.remove()


def measure(bench, options):
    parts, names = options.parts.split(','), options.images.split(',')
    for image in names if 'cold' in parts else ():
        needed = systems.needed_bytes(f'{bench.registry.address}/{image}:opt')
        bench.record({'what': 'needed', 'image': image, 'bytes': needed})
    chosen = [systems.ALL[name]() for name in options.systems.split(',')]
    for run in range(options.runs):
        if 'cold' in parts:
            for image, link, system in itertools.product(names, options.links.split(','), chosen):
                bench.record(attempt(start.cold, bench, system, image, link) | {'run': run})
        if 'everything' in parts:
            of_all = [name for name in ('lazy', 'full', 'containerd') if name in options.systems.split(',')]
            for image, name in itertools.product(names, of_all):
                bench.record(attempt(start.everything, bench, systems.ALL[name](), image, 'loop') | {'run': run})
        if 'room' in parts:
            bench.record(attempt(start.room, bench, '100m20', names) | {'run': run})
        if 'files' in parts:
            for image, system in itertools.product(names, ('lazy', 'stargz', 'containerd')):
                for record in attempt(files.measure, bench, systems.ALL[system](), image):
                    bench.record(record | {'run': run})
    if 'warm' in parts:
        attempt(start.warm, bench, 'small', 4 * options.runs)


def attempt(measure, bench, *what):
    """One measurement that fails shall not cost the others."""
    try:
        return measure(bench, *what)
    except Exception as error:  # noqa: BLE001
        bench.failures += 1
        host.note(f'failed: {measure.__name__} {[getattr(w, "name", w) for w in what]}: {error!r}')
        return [] if measure is files.measure else {}


def init():
    """The first process of the namespace buries orphans, as an init does, while a child of it measures."""
    driver = os.fork()
    if not driver:
        return
    # Ctrl-C reaches the child too, which ends in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(driver, signal.SIGTERM))
    while True:
        ended, status = os.wait()
        if ended == driver:
            # Whatever else runs is killed by the kernel.
            os._exit(os.waitstatus_to_exitcode(status) & 0xff)


if __name__ == '__main__':
    init()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
