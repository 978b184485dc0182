"""The images: real software from Debian, PyPI and npm, as gzip layers (`plain`), as eStargz converted by ctr-remote
(`esgz`) and with what the workload reads in front (`opt`). Kept in target/bench until a recipe changes.

Layers are made as overlay layers on each other, so that they hold what a Dockerfile's steps would. No image is pulled.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tarfile

import host
from host import note, run
from systems import Stargz

KEPT = host.REPOSITORY + '/target/bench'
STORAGE = KEPT + '/registry'
PYTHON_PACKAGES = 'usr/local/lib/python3.11/dist-packages'
WEB = 'fastapi uvicorn[standard] sqlalchemy jinja2 httpx requests django celery redis cryptography pillow lxml'
LEARNING = ('numpy scipy pandas scikit-learn onnxruntime pyarrow matplotlib opencv-python-headless polars statsmodels '
            'transformers')
MODULES = ('express lodash date-fns rxjs @mui/material @mui/icons-material react react-dom typescript webpack '
           '@emotion/react @emotion/styled eslint @babel/core @babel/preset-env core-js axios winston')
WEB_APP = '''from fastapi import FastAPI
import uvicorn, sqlalchemy, jinja2, httpx
app = FastAPI()
@app.get("/")
def root(): return {"ok": True}
@app.on_event("startup")
def up(): print("READY", flush=True)
if __name__ == "__main__":
    uvicorn.run(app, host="0.0.0.0", port=8000, log_level="error")
'''
NODE_APP = '''const express = require("express"), _ = require("lodash"), axios = require("axios");
const { map } = require("rxjs"); const dfns = require("date-fns"); const winston = require("winston");
const React = require("react"); const RDS = require("react-dom/server"); const mui = require("@mui/material");
const app = express();
app.get("/", (q, r) => r.send(RDS.renderToString(React.createElement(mui.Button, null, "hi"))));
app.listen(3000, "0.0.0.0", () => console.log("READY"));
'''
LEARNING_APP = '''import numpy as np, pandas as pd, time
from sklearn.linear_model import LogisticRegression
import onnxruntime
df = pd.DataFrame(np.random.rand(1000, 8)); y = (df.sum(axis=1) > 4).astype(int)
m = LogisticRegression().fit(df.values, y); print("READY", m.score(df.values, y), flush=True)
time.sleep(3600)
'''
SMALL_APP = '#!/bin/sh\ncat /etc/passwd >/dev/null; date -u >/dev/null; echo READY; exec sleep 3600\n'

# Layers and command of each image: (kind, argument) in order, the first at the bottom. Equal layers are made once.
BASE = ('debian', '')
RECIPES = {
    'small': ([('busybox', ''), ('file', ('app/run.sh', SMALL_APP))], ['/app/run.sh']),
    'python': ([BASE, ('apt', 'python3'), ('pip', WEB), ('file', ('app/app.py', WEB_APP))], ['python3', '/app/app.py']),
    'node': ([BASE, ('apt', 'nodejs'), ('npm', MODULES), ('file', ('app/server.js', NODE_APP))],
             ['node', '/app/server.js']),
    'ml': ([BASE, ('apt', 'python3'), ('pip', LEARNING), ('file', ('app/main.py', LEARNING_APP))],
           ['python3', '/app/main.py']),
    'text': ([BASE, ('text', '20 50000000')], ['/bin/bash', '-c', 'echo READY; while true; do sleep 30; done']),
}
CLEAN = ('apt-get clean; rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* /usr/share/doc/* /usr/share/man/* '
         '/usr/share/locale/* /usr/share/info/* /tmp/*')


def make(names):
    """Sees to it that the storage of the registry has these images."""
    done = KEPT + '/images.json'
    known = json.load(open(done)) if os.path.exists(done) else {}
    for name in names:
        recipe = hashlib.sha256(json.dumps(RECIPES[name]).encode()).hexdigest()[:12]
        if known.get(name, {}).get('recipe') == recipe:
            continue
        note(f'making the image {name}; this takes minutes')
        layers = []
        for number in range(len(RECIPES[name][0])):
            layers.append(layer(RECIPES[name][0][:number + 1]))
        push_all(name, layers, RECIPES[name][1])
        known[name] = {'recipe': recipe, 'bytes': sum(os.path.getsize(tar + '.gz') for tar in layers)}
        with open(done + '.new', 'w') as file:
            json.dump(known, file)
        os.rename(done + '.new', done)


def layer(steps):
    """The tar of the last of these steps, made on those before it; returns its path."""
    folder = f'{KEPT}/layers/' + hashlib.sha256(json.dumps(steps).encode()).hexdigest()[:12]
    tar = folder + '.tar'
    if os.path.exists(tar + '.gz'):
        return tar
    below = [layer(steps[:n]).removesuffix('.tar') + '/upper' for n in range(1, len(steps))]
    shutil.rmtree(folder, ignore_errors=True)
    upper, merged = folder + '/upper', folder + '/merged'
    for part in ('upper', 'work', 'merged'):
        os.makedirs(f'{folder}/{part}')
    kind, argument = steps[-1]
    if below:
        run(['mount', '-t', 'overlay', 'overlay', '-o',
             f'lowerdir={":".join(reversed(below))},upperdir={upper},workdir={folder}/work', merged])
        try:
            STEPS[kind](merged, argument)
        finally:
            run(['umount', merged])
    else:
        STEPS[kind](upper, argument)
    write_tar(upper, tar)
    run(f'pigz -6 -n -c {tar} > {tar}.gz.new && mv {tar}.gz.new {tar}.gz', shell=True)
    return tar


def debian(root, _):
    run(['mmdebstrap', '--quiet', '--variant=minbase', 'bookworm', root + '.tar'], timeout=1800)
    run(['tar', '-C', root, '-xf', root + '.tar', '--exclude=./dev/*'])
    os.unlink(root + '.tar')
    with contextlib.suppress(FileExistsError):
        open(root + '/etc/resolv.conf', 'x').close()
    run(['chroot', root, '/bin/sh', '-ec', CLEAN])


def apt(root, packages):
    """In the image, with the apt settings and name servers of this machine while it lasts."""
    binds = [('/dev', '/dev'), ('/proc', '/proc'), ('/etc/apt', '/etc/apt'), ('/etc/resolv.conf', '/etc/resolv.conf')]
    for source, point in binds:
        run(['mount', '--bind', source, root + point])
    try:
        script = f'apt-get update -qq; apt-get install -y -qq --no-install-recommends {packages}; {CLEAN}'
        run(['chroot', root, '/bin/sh', '-ec', script], timeout=1800,
            env=dict(os.environ, PATH='/usr/sbin:/usr/bin:/sbin:/bin', DEBIAN_FRONTEND='noninteractive', LC_ALL='C'))
    finally:
        for _, point in reversed(binds):
            run(['umount', root + point])


def pip(root, packages):
    target = f'{root}/{PYTHON_PACKAGES}'
    os.makedirs(target, exist_ok=True)
    platforms = ' '.join(f'--platform manylinux_2_{v}_x86_64' for v in (36, 31, 28, 27, 24, 17))
    run(f'python3 -m pip install -q --no-compile --no-warn-conflicts --root-user-action=ignore --target {target} '
        f'--python-version 3.11 --only-binary=:all: {platforms} --platform manylinux2014_x86_64 --platform any '
        f'{packages}', shell=True, timeout=3600)
    # As pip does where it installs for itself.
    run(['chroot', root, '/usr/bin/python3', '-m', 'compileall', '-q', '/' + PYTHON_PACKAGES], check=False,
        timeout=3600)


def npm(root, packages):
    work = KEPT + '/npm'
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work)
    with open(work + '/package.json', 'w') as file:
        file.write('{"name": "app", "version": "1.0.0", "private": true}')
    run(f'cd {work} && npm install --ignore-scripts --no-audit --no-fund --loglevel=error {packages}', shell=True,
        timeout=3600)
    os.makedirs(root + '/app', exist_ok=True)
    # Without the lock file, which names where things were fetched.
    run(f'cp -a {work}/node_modules {work}/package.json {root}/app/', shell=True)


def busybox(root, _):
    for folder in ('bin', 'etc/ssl/certs', 'proc', 'sys', 'dev', 'tmp', 'root', 'usr/share/zoneinfo', 'var/tmp'):
        os.makedirs(f'{root}/{folder}')
    shutil.copy('/bin/busybox', root + '/bin/busybox')
    for name in run(['busybox', '--list']).stdout.split():
        if name != 'busybox':
            os.symlink('busybox', f'{root}/bin/{name}')
    for path, text in (('etc/passwd', 'root:x:0:0:root:/root:/bin/sh\n'), ('etc/group', 'root:x:0:\n')):
        with open(f'{root}/{path}', 'w') as file:
            file.write(text)
    shutil.copy('/etc/ssl/certs/ca-certificates.crt', root + '/etc/ssl/certs/')
    run(f'cp -a /usr/share/zoneinfo/Europe /usr/share/zoneinfo/America /usr/share/zoneinfo/Asia '
        f'{root}/usr/share/zoneinfo/', shell=True)


def put_file(root, what):
    path, text = what
    os.makedirs(os.path.dirname(f'{root}/{path}'), exist_ok=True)
    with open(f'{root}/{path}', 'w') as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o755 if text.startswith('#!') else 0o644)


def text_files(root, what):
    count, size = what.split()
    os.makedirs(root + '/files')
    for number in range(int(count)):
        run(f'base64 /dev/urandom | head -c {size} > {root}/files/file{number}.txt', shell=True)


STEPS = {'debian': debian, 'apt': apt, 'pip': pip, 'npm': npm, 'busybox': busybox, 'file': put_file,
         'text': text_files}


def write_tar(folder, path):
    """An overlay layer as a layer of an image: whiteouts become `.wh.` files."""
    links = {}

    def add(tar, source, name):
        """Adds an entry; true for a directory that is to be walked."""
        status = os.lstat(source)
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            whiteout = tarfile.TarInfo(os.path.join(os.path.dirname(name), '.wh.' + os.path.basename(name)))
            tar.addfile(whiteout)
            return False
        entry = tar.gettarinfo(source, name)
        entry.uname = entry.gname = ''
        entry.mtime = int(entry.mtime)
        if not entry.isdir() and status.st_nlink > 1 and not entry.islnk():
            first = links.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                entry.type, entry.linkname, entry.size = tarfile.LNKTYPE, first, 0
        attributes = {key: os.getxattr(source, key, follow_symlinks=False)
                      for key in os.listxattr(source, follow_symlinks=False)}
        for key, value in attributes.items():
            if not key.startswith('trusted.overlay.'):
                entry.pax_headers['SCHILY.xattr.' + key] = value.decode('utf-8', 'surrogateescape')
        if entry.isreg():
            with open(source, 'rb') as file:
                tar.addfile(entry, file)
        else:
            tar.addfile(entry)
        if attributes.get('trusted.overlay.opaque') == b'y':
            tar.addfile(tarfile.TarInfo(name + '/.wh..wh..opq'))
        return entry.isdir()

    def walk(tar, folder, prefix):
        for name in sorted(os.listdir(folder)):
            source, inside = os.path.join(folder, name), prefix + name
            if not stat.S_ISSOCK(os.lstat(source).st_mode) and add(tar, source, inside):
                walk(tar, source, inside + '/')

    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as tar:
        walk(tar, folder, '')


def digest(path):
    with open(path, 'rb') as file:
        return 'sha256:' + hashlib.file_digest(file, 'sha256').hexdigest()


def layout(folder, layers, command):
    """An OCI image layout of these tars, whose only image has the tag `plain`."""
    blobs = folder + '/blobs/sha256'
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(blobs)

    def blob(content):
        name = hashlib.sha256(content).hexdigest()
        with open(f'{blobs}/{name}', 'wb') as file:
            file.write(content)
        return {'digest': 'sha256:' + name, 'size': len(content)}

    described = []
    for tar in layers:
        name = digest(tar + '.gz')
        shutil.copy(tar + '.gz', f'{blobs}/{name[7:]}')
        described.append({'mediaType': 'application/vnd.oci.image.layer.v1.tar+gzip', 'digest': name,
                          'size': os.path.getsize(tar + '.gz')})
    config = blob(json.dumps({
        'architecture': 'amd64', 'os': 'linux',
        'config': {'Env': ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'], 'Cmd': command,
                   'WorkingDir': '/'},
        'rootfs': {'type': 'layers', 'diff_ids': [digest(tar) for tar in layers]}}).encode())
    image = blob(json.dumps({
        'schemaVersion': 2, 'mediaType': 'application/vnd.oci.image.manifest.v1+json',
        'config': {'mediaType': 'application/vnd.oci.image.config.v1+json', **config}, 'layers': described}).encode())
    with open(folder + '/index.json', 'w') as file:
        json.dump({'schemaVersion': 2, 'manifests': [{
            'mediaType': 'application/vnd.oci.image.manifest.v1+json', **image,
            'annotations': {'org.opencontainers.image.ref.name': 'plain'}}]}, file)
    with open(folder + '/oci-layout', 'w') as file:
        json.dump({'imageLayoutVersion': '1.0.0'}, file)


def push_all(name, layers, command):
    """Pushes the image in its three forms, with containerd's own tools."""
    folder = KEPT + '/layout'
    layout(folder, layers, command)
    registry = host.Registry(STORAGE)
    converter = Stargz('converter')
    # Its state: what is converted is larger than memory may be, and not measured.
    os.makedirs(host.DISK, exist_ok=True)
    scratch = KEPT + '/convert'
    os.makedirs(scratch, exist_ok=True)
    run(['mount', '--bind', scratch, host.DISK])
    try:
        plain, image = f'{registry.address}/{name}:plain', f'{registry.address}/{name}'
        run(['skopeo', '--insecure-policy', 'copy', '--quiet', '--dest-tls-verify=false', f'oci:{folder}:plain',
             f'docker://{plain}'])
        converter.start_daemons()
        environment = converter.environment()
        for command in (['pull', '--plain-http', plain], ['convert', '--estargz', '--oci', plain, image + ':esgz'],
                        # What the workload reads in 8 seconds is put in front.
                        ['optimize', '--oci', '--period', '8', plain, image + ':opt'],
                        ['push', '--plain-http', image + ':esgz'], ['push', '--plain-http', image + ':opt']):
            run(['ctr-remote', 'image', *command], env=environment, timeout=3600)
    finally:
        keep = {registry.process.pid}
        converter.end(keep)
        host.unmount_below(host.DISK)
        registry.close()
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


__all__ = ['RECIPES', 'STORAGE', 'make']
