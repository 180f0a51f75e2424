#!/usr/bin/python3 -I
"""A key manager for sealbd in one file: a plug-in of its `exec` provider (docs/PLUGIN.md).

It keeps key-encryption keys in a private directory, in numbered versions, and wraps with AES-256-GCM. It shows
every verb of the protocol and what each must hold; a plug-in for a service replaces the class `Keys` and keeps
the rest. Keys on the same disk as sealbd protect against losing the volume's storage, not against losing this
host: for real use, speak to something that keeps keys elsewhere.

    [provider.local]
    type = "exec"
    command = ["/usr/local/lib/sealbd/key_manager_plugin.py", "/var/lib/sealbd-keys"]

The directory holds DIRECTORY/KEY/VERSION: 32 bytes, mode 0600; an empty file is a version that was destroyed.
Needs Python 3.9 or newer and python3-cryptography.
"""

import base64
import json
import os
import re
import sys

# The protocol's bounds, as far as they concern this plug-in.
REQUEST_BYTES_MAX = 64 << 10
KEY_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
KEK_LEN = 32
NONCE_LEN = 12
DEFAULT_KEY = "default"


class Refused(Exception):
    """An answer other than yes: `kind` is one of the protocol's words."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


class Keys:
    """Versions of keys, each in a file of its own that is made once and never changed but to destroy it."""

    def __init__(self, directory):
        self.directory = directory
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            mode = os.stat(directory).st_mode
        except OSError as error:
            raise Refused("settings", f"{directory}: {error.strerror}")
        if mode & 0o077:
            raise Refused("settings", f"{directory} is open to others; next: chmod 700")

    def path(self, key_id, version=None):
        # What comes from a keyslot is an attacker's until proven otherwise: never a path as it is.
        if not KEY_NAME.fullmatch(key_id):
            raise Refused("denied", "no such key")
        if version is None:
            return os.path.join(self.directory, key_id)
        if not VERSION.fullmatch(version):
            raise Refused("denied", "no such version")
        return os.path.join(self.directory, key_id, version)

    def versions(self, key_id):
        """Every version there ever was, oldest first."""
        try:
            names = os.listdir(self.path(key_id))
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if VERSION.fullmatch(name))

    def make(self, key_id):
        """A new version. Its number is one that no version ever had."""
        os.makedirs(self.path(key_id), mode=0o700, exist_ok=True)
        unfinished = os.path.join(self.path(key_id), f".new.{os.getpid()}")
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(KEK_LEN))
            file.flush()
            os.fsync(file.fileno())
        try:
            while True:
                number = max(self.versions(key_id), default=0) + 1
                try:
                    # Unlike a rename, a link never replaces what another process has just made.
                    os.link(unfinished, self.path(key_id, str(number)))
                    break
                except FileExistsError:
                    continue
        finally:
            os.unlink(unfinished)
        self.settle(key_id)
        return str(number)

    def newest(self, key_id):
        """The version to wrap with: the newest. The first is made with the key's first use, another when
        the newest was destroyed."""
        versions = self.versions(key_id)
        if versions and os.stat(self.path(key_id, str(versions[-1]))).st_size:
            return str(versions[-1])
        return self.make(key_id)

    def read(self, key_id, version):
        try:
            with open(self.path(key_id, version), "rb") as file:
                kek = file.read(KEK_LEN + 1)
        except FileNotFoundError:
            raise Refused("denied", f"key {key_id} has no version {version}")
        if not kek:
            raise Refused("denied", f"version {version} of key {key_id} is destroyed")
        if len(kek) != KEK_LEN:
            raise Refused("settings", f"version {version} of key {key_id} is damaged")
        return kek

    def destroy(self, key_id, version):
        """Done already is done; a version that never was is refused."""
        try:
            with open(self.path(key_id, version), "r+b") as file:
                file.truncate(0)
                os.fsync(file.fileno())
        except FileNotFoundError:
            raise Refused("denied", f"key {key_id} has no version {version}")

    def settle(self, key_id):
        """A new name is on stable storage before anybody relies on it."""
        for path in (self.path(key_id), self.directory):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(descriptor)
            os.close(descriptor)


def bytes_of(request, field):
    return base64.b64decode(request[field], validate=True)


def cipher(kek):
    # Here, for it takes longer to load than everything else.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(kek)


def bound(request, key_id, version):
    """What the wrap authenticates besides the key: the volume, and under which key this was."""
    return b"\0".join([bytes_of(request, "aad"), key_id.encode(), version.encode()])


def wrap(keys, request):
    key_id = request.get("key", DEFAULT_KEY)
    version = keys.newest(key_id)
    nonce = os.urandom(NONCE_LEN)
    sealer = cipher(keys.read(key_id, version))
    blob = nonce + sealer.encrypt(nonce, bytes_of(request, "kek"), bound(request, key_id, version))
    return {"key_id": key_id, "version": version, "blob": base64.b64encode(blob).decode()}


def unwrap(keys, request):
    from cryptography.exceptions import InvalidTag

    key_id, version, blob = request["key_id"], request.get("version", ""), bytes_of(request, "blob")
    opener = cipher(keys.read(key_id, version))
    try:
        kek = opener.decrypt(blob[:NONCE_LEN], blob[NONCE_LEN:], bound(request, key_id, version))
    except (InvalidTag, ValueError):
        raise Refused("denied", f"not wrapped by version {version} of key {key_id} for this volume")
    return {"kek": base64.b64encode(kek).decode()}


def rotate(keys, request):
    # Only of a key that there is: a keyslot of another manager must not make one here.
    if not keys.versions(request["key_id"]):
        raise Refused("denied", "no such key")
    keys.make(request["key_id"])
    return {}


def destroy(keys, request):
    keys.destroy(request["key_id"], request.get("version", ""))
    return {}


def status(keys, request):
    count = sum(1 for name in os.listdir(keys.directory) if KEY_NAME.fullmatch(name))
    return {"text": f"directory {keys.directory}, {count} keys"}


VERBS = {"wrap": wrap, "unwrap": unwrap, "rotate": rotate, "destroy": destroy, "status": status}


def answer(arguments, line):
    if len(arguments) != 2:
        raise Refused("settings", "this plug-in takes one argument: the directory of its keys")
    request = json.loads(line)
    if request.get("sealbd_plugin") != 1:
        raise Refused("unsupported", "this plug-in speaks version 1 of the protocol")
    verb = VERBS.get(request.get("verb"))
    if verb is None:
        raise Refused("unsupported", "no such verb")
    return verb(Keys(arguments[1]), request)


def main():
    os.umask(0o077)
    line = sys.stdin.buffer.readline(REQUEST_BYTES_MAX)
    try:
        reply = {"ok": answer(sys.argv, line)}
    except Refused as refused:
        reply = {"error": {"kind": refused.kind, "message": str(refused)}}
    except (KeyError, TypeError, ValueError) as error:
        # The names of what is missing, never a value.
        reply = {"error": {"kind": "malformed", "message": f"not a request: {type(error).__name__}"}}
    except OSError as error:
        reply = {"error": {"kind": "settings", "message": f"{error.filename}: {error.strerror}"}}
    sys.stdout.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
