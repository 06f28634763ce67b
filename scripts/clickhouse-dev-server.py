#!/usr/bin/env python3
"""A development server: ClickHouse's engine (the Python module chdb) behind ClickHouse's HTTP interface.

It is for machines without a container engine, and for tests: one process, one user, no TLS, no other protocol.
The engine computes the results. This server adds the HTTP interface of the real server: queries in the body or in the
address, settings and parameters in the address, streamed inserts, LZ4 in both directions, error codes in the header,
and the HTTP status of each error.

    clickhouse-dev-server.py FOLDER PORT

The engine keeps its data in FOLDER. The user and the password are QI_CLICKHOUSE_USER and QI_CLICKHOUSE_PASSWORD
(qi and qi). The server listens on 127.0.0.1 only.

If root starts the process, it confines itself before the first request, because SQL can read and write files and open
connections. FOLDER becomes its root directory, its network has no interface except the listening socket, and it runs as
FOLDER's owner.

QI_CLICKHOUSE_GRANTS limits the privileges of the user to its GRANT statements, one on each line and without TO.
"""

import base64
import ctypes
import email.parser
import email.policy
import http.server
import importlib
import os
import re
import signal
import sys
import tempfile
import time
import urllib.parse
import uuid
import xml.sax.saxutils

import clickhouse_cityhash.cityhash as cityhash
import lz4.block
import lz4.frame

USER = os.environ.get("QI_CLICKHOUSE_USER", "qi")
PASSWORD = os.environ.get("QI_CLICKHOUSE_PASSWORD", "qi")

# HTTP statuses by error code, from ClickHouse's src/Server/HTTP/exceptionCodeToHTTPStatus.cpp. Other errors are 500.
STATUS_OF_NAME = {
    401: "REQUIRED_PASSWORD",
    403: "UNKNOWN_USER WRONG_PASSWORD AUTHENTICATION_FAILED SET_NON_GRANTED_ROLE ACCESS_DENIED",
    400: "BAD_ARGUMENTS CANNOT_COMPILE_REGEXP CANNOT_PARSE_TEXT CANNOT_PARSE_ESCAPE_SEQUENCE "
    "CANNOT_PARSE_QUOTED_STRING CANNOT_PARSE_DATE CANNOT_PARSE_DATETIME CANNOT_PARSE_NUMBER "
    "CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING CANNOT_PARSE_IPV4 CANNOT_PARSE_IPV6 "
    "CANNOT_PARSE_INPUT_ASSERTION_FAILED CANNOT_PARSE_UUID DUPLICATE_COLUMN ILLEGAL_COLUMN "
    "UNKNOWN_ELEMENT_IN_AST UNKNOWN_TYPE_OF_AST_NODE THERE_IS_NO_COLUMN TOO_DEEP_AST TOO_BIG_AST "
    "UNEXPECTED_AST_STRUCTURE SYNTAX_ERROR INCORRECT_DATA TYPE_MISMATCH VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE",
    404: "UNKNOWN_TABLE UNKNOWN_FUNCTION UNKNOWN_IDENTIFIER UNKNOWN_TYPE UNKNOWN_STORAGE UNKNOWN_DATABASE "
    "UNKNOWN_SETTING UNKNOWN_DIRECTION_OF_SORTING UNKNOWN_AGGREGATE_FUNCTION UNKNOWN_FORMAT "
    "UNKNOWN_DATABASE_ENGINE UNKNOWN_TYPE_OF_QUERY UNKNOWN_ROLE",
    413: "QUERY_IS_TOO_LARGE",
    501: "NOT_IMPLEMENTED",
    503: "SOCKET_TIMEOUT CANNOT_OPEN_FILE CANNOT_SCHEDULE_TASK",
    411: "HTTP_LENGTH_REQUIRED",
    408: "TIMEOUT_EXCEEDED",
    415: "UNSUPPORTED_MEDIA_TYPE",
}
STATUS = {name: status for status, names in STATUS_OF_NAME.items() for name in names.split()}

# The parameters of the address that are not settings.
NO_SETTINGS = {
    "query", "database", "default_format", "compress", "decompress", "user", "password", "query_id", "session_id",
    "session_timeout", "session_check", "role", "enable_http_compression", "wait_end_of_query", "buffer_size",
    "client_protocol_version", "quota_key",
}
CODE = re.compile(r"Code: (\d+)")
NAME = re.compile(r"\(([A-Z][A-Z0-9_]+)\)\s*$")
INSERT = re.compile(r"^\s*INSERT\s+INTO\s+.*?\s+FORMAT\s+(\w+)\s*$", re.IGNORECASE | re.DOTALL)
CHUNK = 1 << 18

# The engine. `main` loads it, because the module starts threads.
chdb = None


class Failed(Exception):
    """An error of the engine, or of this server in its place."""

    def __init__(self, text):
        text = text.strip()
        code = CODE.search(text)
        name = NAME.search(text)
        self.code = int(code.group(1)) if code else 1002
        self.status = STATUS.get(name.group(1), 500) if name else 500
        super().__init__(text)


class Aborted(Exception):
    """The client disconnected in the middle of its request."""


def checksum(block):
    """Returns the CityHash128 of version 1.0.2, with its halves in wire order."""
    value = cityhash.CityHash128(block).to_bytes(16, "big")
    return value[7::-1] + value[:7:-1]


def decompressed(chunks):
    """Decompresses ClickHouse's LZ4 blocks: a checksum of 16 bytes, the method, two lengths, the data."""
    buffer = b""
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= 25:
            length = int.from_bytes(buffer[17:21], "little")
            if len(buffer) < 16 + length:
                break
            block, buffer = buffer[: 16 + length], buffer[16 + length :]
            if block[:16] != checksum(block[16:]):
                raise Failed("Code: 40. DB::Exception: Checksum doesn't match: corrupted data. (CHECKSUM_DOESNT_MATCH)")
            size = int.from_bytes(block[21:25], "little")
            if block[16] != 0x82:
                raise Failed("Code: 89. DB::Exception: Unknown compression method. (UNKNOWN_COMPRESSION_METHOD)")
            yield lz4.block.decompress(block[25:], uncompressed_size=size)
    if buffer:
        raise Failed("Code: 33. DB::Exception: Cannot read all data. (CANNOT_READ_ALL_DATA)")


def quoted(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "qi-clickhouse-dev-server"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def log_message(self, *_):
        pass

    def do_GET(self):
        if urllib.parse.urlsplit(self.path).path in ("/ping", "/replicas_status", "/") and "query=" not in self.path:
            self.answer(200, b"Ok.\n", {"Content-Type": "text/html; charset=UTF-8"})
        else:
            self.serve()

    def do_POST(self):
        self.serve()

    def serve(self):
        self.consumed = False
        try:
            self.run()
        except Failed as failure:
            version = chdb.engine_version
            text = f"{failure} (version {version})\n" if "version" not in str(failure) else f"{failure}\n"
            self.drain()
            self.answer(failure.status, text.encode(), {"X-ClickHouse-Exception-Code": str(failure.code)})
        except (Aborted, ConnectionError):
            self.close_connection = True
        except ValueError as error:
            # Invalid requests: text that is not UTF-8, or a length that is not a number. The position of the next
            # request is unknown.
            self.close_connection = True
            self.answer(400, f"{error}\n".encode(), {})

    def run(self):
        address = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query, keep_blank_values=True))
        self.authenticate(address)
        if "query" in address and self.command == "POST":
            query, insert = address["query"], INSERT.match(address["query"])
        else:
            insert = None
            query = address.get("query", "")
        if insert is None and self.command == "POST":
            query += self.whole_body(address)
        if not query.strip():
            raise Failed("Code: 62. DB::Exception: Syntax error: failed at position 1 (end of query): . (SYNTAX_ERROR)")
        connection = chdb.connect(self.server.folder)
        try:
            self.prepare(connection, address)
            if insert:
                self.insert(connection, query, insert.group(1), address)
            else:
                self.select(connection, query, address)
        finally:
            connection.close()

    def authenticate(self, address):
        user = address.get("user") or self.headers.get("X-ClickHouse-User") or "default"
        password = address.get("password") or self.headers.get("X-ClickHouse-Key") or ""
        basic = self.headers.get("Authorization", "")
        if basic.startswith("Basic "):
            user, _, password = base64.b64decode(basic[6:]).decode().partition(":")
        if (user, password) != (USER, PASSWORD):
            raise Failed(
                f"Code: 516. DB::Exception: {user}: Authentication failed: password is incorrect, or there is no "
                "user with such name. (AUTHENTICATION_FAILED)"
            )

    def prepare(self, connection, address):
        # The module accepts a bare expression as a query, which is a syntax error on the server.
        settings = ["implicit_select = 0"] + [
            # Every setting accepts text, but `compatibility` rejects a number.
            f"{name} = {quoted(value)}"
            for name, value in address.items()
            if name not in NO_SETTINGS and not name.startswith("param_") and re.fullmatch(r"\w+", name)
        ]
        parameters = [
            f"{name} = {quoted(value)}" for name, value in address.items() if re.fullmatch(r"param_\w+", name)
        ]
        for assignments in (settings, parameters):
            if assignments:
                execute(connection, "SET " + ", ".join(assignments), "Null")
        if database := address.get("database"):
            execute(connection, "USE `" + database.replace("`", "``") + "`", "Null")

    def body(self):
        """Yields the parts of the body as they arrive."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while True:
                line = self.rfile.readline(1024)
                if not line.endswith(b"\n"):
                    raise Aborted
                length = int(line.split(b";")[0], 16)
                part = self.rfile.read(length) if length else b""
                if len(part) != length:
                    raise Aborted
                if self.rfile.readline(1024) not in (b"\r\n", b"\n"):
                    raise Aborted
                if not length:
                    break
                yield part
        else:
            left = int(self.headers.get("Content-Length") or 0)
            while left:
                part = self.rfile.read(min(left, CHUNK))
                if not part:
                    raise Aborted
                left -= len(part)
                yield part
        self.consumed = True

    def drain(self):
        """Reads the rest of a rejected request, so that the connection can be reused."""
        if self.consumed:
            return
        try:
            for _ in self.body():
                pass
        except (Aborted, ConnectionError, ValueError):
            self.close_connection = True

    def whole_body(self, address):
        parts = b"".join(decompressed(self.body()) if address.get("decompress") == "1" else self.body())
        kind = self.headers.get("Content-Type", "")
        if not kind.startswith("multipart/form-data"):
            return parts.decode()
        form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
            b"Content-Type: " + kind.encode() + b"\r\n\r\n" + parts
        )
        query = ""
        for part in form.iter_parts():
            name = part.get_param("name", header="content-disposition")
            if name == "query":
                query = part.get_content().rstrip("\n")
            else:
                address[name] = part.get_content().rstrip("\n")
        return query

    def insert(self, connection, query, form, address):
        # With a file, because the module's streamed insert does not report a block that the engine rejects.
        head = query[: query.upper().rindex("FORMAT")].rstrip()
        with tempfile.NamedTemporaryFile(dir=self.server.spool) as file:
            parts = self.body()
            for part in decompressed(parts) if address.get("decompress") == "1" else parts:
                file.write(part)
            # An insert that the client did not complete must not be stored.
            if not self.consumed:
                raise Aborted
            file.flush()
            execute(connection, f"{head} FROM INFILE {quoted(file.name)} COMPRESSION 'none' FORMAT {form}", "Null")
        self.answer(200, b"", {})

    def select(self, connection, query, address):
        form = address.get("default_format", "TabSeparated")
        data = execute(connection, query, form)
        headers = {"X-ClickHouse-Format": form}
        accepted = self.headers.get("Accept-Encoding", "")
        if "lz4" in accepted and data:
            data, headers["Content-Encoding"] = lz4.frame.compress(data), "lz4"
        elif address.get("compress") == "1":
            data = compressed(data)
        self.answer(200, data, headers)

    def answer(self, status, data, headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-ClickHouse-Server-Display-Name", "qi-clickhouse-dev-server")
        self.send_header("X-ClickHouse-Query-Id", str(uuid.uuid4()))
        self.send_header("X-ClickHouse-Timezone", "UTC")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()


def compressed(data):
    """Compresses to ClickHouse's LZ4 format, in blocks of a mebibyte."""
    out = bytearray()
    for start in range(0, len(data), 1 << 20):
        part = data[start : start + (1 << 20)]
        packed = lz4.block.compress(part, store_size=False)
        block = b"\x82" + (len(packed) + 9).to_bytes(4, "little") + len(part).to_bytes(4, "little") + packed
        out += checksum(block) + block
    return bytes(out)


def execute(connection, query, form):
    try:
        return bytes(connection.query(query, form).bytes())
    except Exception as error:  # the module raises types of its own
        raise Failed(str(error)) from None


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def confine(folder):
    """Makes `folder` the root directory and its owner the user. Returns the new path of the folder."""
    owner = os.stat(folder)
    if os.geteuid() != 0:
        return folder
    if owner.st_uid == 0:
        sys.exit(f"{folder} belongs to root: the server would run as root")
    os.chroot(folder)
    os.chdir("/")
    os.setgroups([])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)
    return "/"


def leave_network():
    """Moves the process to a network without interfaces. Open sockets keep their network."""
    if os.geteuid() != 0:
        return
    # Only the calling thread and its later threads move.
    if len(os.listdir("/proc/self/task")) != 1:
        sys.exit("the process has threads already: they would keep the network")
    clone_newnet = 0x40000000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(clone_newnet) != 0:
        sys.exit(f"the network could not be left: {os.strerror(ctypes.get_errno())}")


def grant(folder, grants):
    """Writes the users of the engine. The engine reads the file from the working directory when it starts."""
    os.chdir(folder)
    if not grants:
        for left in ("config.xml", "users.xml"):
            if os.path.exists(left):
                os.unlink(left)
        return
    queries = "".join(f"<query>{xml.sax.saxutils.escape(line)}</query>" for line in grants)
    with open("config.xml", "w") as file:
        file.write("<clickhouse><users_config>users.xml</users_config></clickhouse>")
    with open("users.xml", "w") as file:
        file.write(
            "<clickhouse><profiles><default/></profiles><quotas><default/></quotas><users><default><password/>"
            "<networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota>"
            f"<grants>{queries}</grants></default></users></clickhouse>"
        )


def main():
    folder, port = sys.argv[1], int(sys.argv[2])
    os.environ["TZ"] = "UTC"
    time.tzset()
    server = Server(("127.0.0.1", port), Handler, bind_and_activate=False)
    server.server_bind()
    leave_network()
    global chdb
    chdb = importlib.import_module("chdb")
    folder = confine(folder)
    grants = os.environ.get("QI_CLICKHOUSE_GRANTS", "").splitlines()
    grant(folder, grants)
    # One connection stays open, so that the engine stays loaded.
    keeper = chdb.connect(folder)
    if not grants:
        execute(keeper, "CREATE DATABASE IF NOT EXISTS qi", "Null")
    server.folder = folder
    server.spool = os.path.join(folder, "spool")
    os.makedirs(server.spool, exist_ok=True)
    for left in os.listdir(server.spool):
        os.unlink(os.path.join(server.spool, left))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    # An open port means that the server responds.
    server.server_activate()
    print(f"listens on 127.0.0.1:{port}", flush=True)
    try:
        server.serve_forever()
    finally:
        keeper.close()


if __name__ == "__main__":
    main()
