"""Turns records into Markdown tables; medians everywhere."""

from host import LINKS, median


def groups(records, *keys):
    """Records by the values of some keys, in order of their first appearance."""
    found = {}
    for record in records:
        found.setdefault(tuple(record.get(key) for key in keys), []).append(record)
    return found


def of(records, *path):
    """The values that records have at a path of keys."""
    found = []
    for record in records:
        for key in path:
            record = record.get(key) if isinstance(record, dict) else None
        if record is not None:
            found.append(record)
    return found


def show(values, digits=2, scale=1):
    return '-' if not values else f'{median(values) * scale:.{digits}f}'


def spread(values, digits=2):
    return 'failed' if not values else f'{min(values):.{digits}f}-{max(values):.{digits}f}'


def table(heads, rows):
    lines = ['| ' + ' | '.join(heads) + ' |', '|' + '---|' * len(heads)]
    return '\n'.join(lines + ['| ' + ' | '.join(row) + ' |' for row in rows])


def cold(records):
    rows = []
    for (image, link, system), some in groups(records, 'image', 'link', 'system').items():
        times = of(some, 'ready_s')
        rows.append([image, link, system, show(times), spread(times), show(of(some, 'pull_s')),
                     show(of(some, 'requests'), 0), show(of(some, 'bytes'), 1, 1e-6), show(of(some, 'cpu_s')),
                     show(of(some, 'memory', 'kept_mb'), 0), show(of(some, 'memory', 'resident_mb'), 0),
                     str(len(times))])
    return table(
        ['image', 'link', 'system', 'ready s', 'min-max', 'pull s', 'requests', 'MB', 'CPU s', 'memory MB',
         'resident MB', 'runs'], rows)


def summary(records, needed):
    """Seconds to ready side by side, and against the floor: three round trips, what is needed at the link's speed, and
    the run of the image that is all here."""
    systems = [system for system, in groups(records, 'system')]
    needed = {record['image']: record['bytes'] for record in needed}
    rows = []
    for (image, link), some in groups(records, 'image', 'link').items():
        by_system = {system: of(own, 'ready_s') for (system,), own in groups(some, 'system').items()}
        runs = [median(of(own, 'run_s')) for (system,), own in groups(some, 'system').items()
                if system in ('full', 'containerd', 'podman') and of(own, 'run_s')]
        trip, megabits = LINKS[link]
        floor = None
        if runs and image in needed:
            floor = 3 * trip / 1e3 + (needed[image] * 8 / megabits / 1e6 if megabits else 0) + min(runs)
        ours = by_system.get('lazy')
        rows.append([image, link] + [show(by_system.get(system, [])) for system in systems]
                    + [f'{floor:.2f}' if floor else '-',
                       f'{median(ours) / median(by_system["stargz"]):.2f}' if ours and by_system.get('stargz') else '-',
                       f'{median(ours) / floor:.2f}' if ours and floor else '-'])
    return 'Seconds from nothing to ready:\n\n' + table(
        ['image', 'link', *systems, 'floor', 'lazy / stargz', 'lazy / floor'], rows)


def room(records):
    rows = [[image, link, show(of(some, 'ready_s')), spread(of(some, 'ready_s')), show(of(some, 'requests'), 0),
             show(of(some, 'bytes'), 1, 1e-6), show(of(some, 'memory', 'kept_mb'), 0)]
            for (image, link), some in groups(records, 'image', 'link').items()]
    return 'Ten services at once, to the last READY:\n\n' + table(
        ['images', 'link', 's', 'min-max', 'requests', 'MB', 'memory MB'], rows)


def warm(records):
    rows = []
    for (image, system), some in groups(records, 'image', 'system').items():
        times = of(some, 'ready_ms')
        rows.append([image, system, show(times, 1), spread(times, 1), str(len(times))])
    return 'Once more, to the line READY:\n\n' + table(['image', 'system', 'ms', 'min-max', 'starts'], rows)


def files(records):
    systems = list(groups(records, 'system'))
    rows = []
    for (image, measure), some in groups(records, 'image', 'measure').items():
        by_system = groups(some, 'system')
        rows.append([image, measure] + [show(of(by_system.get(system, []), 'value'), 0) for system in systems])
    return 'Inside a mounted image (containerd: overlayfs, fully pulled):\n\n' + table(
        ['image', 'what'] + [system for system, in systems], rows)


def tables(records):
    by_what = {what: some for (what,), some in groups(records, 'what').items()}
    parts = []
    if 'cold' in by_what:
        parts += [summary(by_what['cold'], by_what.get('needed', [])), 'In detail:\n\n' + cold(by_what['cold'])]
    if 'everything' in by_what:
        parts.append('With a workload that reads every file first:\n\n' + cold(by_what['everything']))
    for what, make in (('room', room), ('warm', warm), ('files', files)):
        if what in by_what:
            parts.append(make(by_what[what]))
    return '\n\n'.join(parts)
