"""Inside a mounted image: how fast files are read and looked at, against containerd's overlayfs of the same image."""

import os
import random
import time

import host

# Reads of 4 KiB at random, each time.
READS_COLD, READS = 300, 4000


def measure(bench, system, image):
    """All figures of one system on one image, over a link without limits."""
    records = []

    def note(what, value):
        records.append({'what': 'files', 'image': image, 'system': system.name, 'measure': what, 'value': value,
                        'load': os.getloadavg()[0]})

    with bench.linked(system, 'loop') as (link, keep):
        system.cold(bench.disk, keep)
        reference = f'{link.address}/{image}:{system.form}'
        host.run(system.pull(reference), env=system.environment())
        root = system.mount(reference)
        host.drop_caches()
        if image == 'text':
            large_files(root, note)
        else:
            whole_tree(root, note)
            note('memory MB after reading everything', host.memory(keep)['kept_mb'])
        return records


def large_files(root, note):
    """Files of 50 MB; the first read of each is a cold one for a lazy image."""
    def path(number):
        return f'{root}/files/file{number}.txt'

    note('sequential, first read, MB/s', sequential(path(1)))
    note('sequential, cached, MB/s', sequential(path(1)))
    host.drop_caches()
    note('sequential, from disk, MB/s', sequential(path(1)))
    note('random 4k, first read, 1/s', at_random(path(2), READS_COLD))
    host.drop_caches()
    note('random 4k, from disk, 1/s', at_random(path(1), READS))
    sequential(path(1))
    note('random 4k, cached, 1/s', at_random(path(1), 5 * READS))


def whole_tree(root, note):
    """Every entry looked at, every byte read."""
    entries, seconds = 0, []
    for _ in range(2):
        began = time.time()
        entries = int(host.run(f"find {root} -xdev -printf '%s\\n' | wc -l", shell=True).stdout.split()[-1])
        seconds.append(time.time() - began)
    note('find, first, entries/s', entries / seconds[0])
    note('find, again, entries/s', entries / seconds[1])
    for when in ('first', 'from disk'):
        began = time.time()
        read = host.run(f'tar -C {root} --one-file-system -cf - . 2>/dev/null | wc -c', shell=True)
        size = int(read.stdout.split()[-1])
        note(f'read everything, {when}, MB/s', size / 1e6 / (time.time() - began))
        host.drop_caches()


def sequential(path, piece=128 << 10):
    began, size = time.time(), 0
    with open(path, 'rb', buffering=0) as file:
        buffer = bytearray(piece)
        while count := file.readinto(buffer):
            size += count
    return size / 1e6 / (time.time() - began)


def at_random(path, count):
    chance = random.Random(count)
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    pages = os.fstat(descriptor).st_size // 4096
    began = time.time()
    for _ in range(count):
        os.pread(descriptor, 4096, 4096 * chance.randrange(pages))
    taken = time.time() - began
    os.close(descriptor)
    return count / taken
