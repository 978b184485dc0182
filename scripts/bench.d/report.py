"""Turns records into Markdown tables; medians everywhere."""

from host import median


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
    return 'From nothing to ready:\n\n' + table(
        ['image', 'link', 'system', 'ready s', 'min-max', 'pull s', 'requests', 'MB', 'CPU s', 'memory MB',
         'resident MB', 'runs'], rows)


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
    parts = [make([record for record in records if record.get('what') == what])
             for what, make in (('cold', cold), ('warm', warm), ('files', files))
             if any(record.get('what') == what for record in records)]
    return '\n\n'.join(parts)
