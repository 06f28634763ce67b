"""Reads and writes Protobuf messages with the official runtime, as another program would.

Argument: the folder of the `.proto` files. Standard input: for each message a line `TYPE HEX`. Standard output: for each
message a line of JSON with the decoded record, and the same record encoded from that JSON.
"""

import json
import pathlib
import re
import sys
from decimal import Context, Decimal

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

F = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    "string": F.TYPE_STRING,
    "int64": F.TYPE_INT64,
    "uint64": F.TYPE_UINT64,
    "sint64": F.TYPE_SINT64,
    "uint32": F.TYPE_UINT32,
    "bool": F.TYPE_BOOL,
    "bytes": F.TYPE_BYTES,
}
EXACT = Context(prec=60)


def parse(name, text):
    """The descriptor of a file. The published files use a small part of the language."""
    file = descriptor_pb2.FileDescriptorProto(name=name, package="qi.v1", syntax="proto3")
    message = enum = None
    for line in text.splitlines():
        line = line.strip()
        if found := re.fullmatch(r'import "(.*)";', line):
            file.dependency.append(found[1])
        elif found := re.fullmatch(r"message (\w+) {", line):
            message = file.message_type.add(name=found[1])
        elif found := re.fullmatch(r"enum (\w+) {", line):
            enum = message.enum_type.add(name=found[1])
        elif line == "}":
            enum = None
        elif enum is not None and (found := re.fullmatch(r"(\w+) = (\d+);", line)):
            enum.value.add(name=found[1], number=int(found[2]))
        elif found := re.fullmatch(r"(?:(optional|repeated) )?(\w+) (\w+) = (\d+);", line):
            label, type_name, field_name, number = found.groups()
            field = message.field.add(name=field_name, number=int(number))
            field.label = F.LABEL_REPEATED if label == "repeated" else F.LABEL_OPTIONAL
            if type_name in SCALARS:
                field.type = SCALARS[type_name]
            elif any(type_name == nested.name for nested in message.enum_type):
                field.type, field.type_name = F.TYPE_ENUM, f".qi.v1.{message.name}.{type_name}"
            else:
                field.type, field.type_name = F.TYPE_MESSAGE, f".qi.v1.{type_name}"
            if label == "optional":
                field.proto3_optional = True
                field.oneof_index = len(message.oneof_decl)
                message.oneof_decl.add(name=f"_{field_name}")
        elif line and not line.startswith("//") and not line.startswith(("syntax", "package")):
            sys.exit(f"{name}: cannot read {line!r}")
    return file


def decimal(value):
    unscaled = int.from_bytes(value.wide, "big", signed=True) if value.wide else value.unscaled
    text = format(Decimal(unscaled).scaleb(-value.scale, EXACT), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def set_decimal(out, text):
    sign, digits, exponent = Decimal(text).as_tuple()
    unscaled = int("".join(map(str, digits))) * (-1 if sign else 1)
    # A reader must also accept a scale that is not the shortest one.
    if -exponent < 18 and abs(unscaled) < 10**17:
        unscaled, exponent = unscaled * 10, exponent - 1
    out.scale = -exponent
    if -(2**63) <= unscaled < 2**63:
        out.unscaled = unscaled
    else:
        out.wide = unscaled.to_bytes(16, "big", signed=True)
    out.SetInParent()


def to_json(message):
    record = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            record[field.name] = [[decimal(level.price), decimal(level.quantity)] for level in value]
        elif not message.HasField(field.name):
            continue
        elif field.enum_type:
            name = field.enum_type.values_by_number[value].name
            record[field.name] = name.removeprefix(f"{field.name.upper()}_").lower()
        else:
            record[field.name] = decimal(value) if field.message_type else value
    return record


def from_json(message, record):
    for field in reversed(message.DESCRIPTOR.fields):
        if field.name not in record:
            continue
        value = record[field.name]
        if field.is_repeated:
            for price, quantity in value:
                level = getattr(message, field.name).add()
                set_decimal(level.price, price)
                set_decimal(level.quantity, quantity)
        elif field.message_type:
            set_decimal(getattr(message, field.name), value)
        elif field.enum_type:
            names = field.enum_type.values_by_name
            setattr(message, field.name, names[f"{field.name.upper()}_{value.upper()}"].number)
        else:
            setattr(message, field.name, value)


pool = descriptor_pool.DescriptorPool()
folder = pathlib.Path(sys.argv[1])
files = sorted(folder.glob("qi/v1/*.proto"), key=lambda path: path.name != "types.proto")
for path in files:
    pool.Add(parse(str(path.relative_to(folder)), path.read_text()))
for line in sys.stdin:
    type_name, payload = line.split()
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"qi.v1.{type_name}"))
    record = to_json(kind.FromString(bytes.fromhex(payload)))
    other = kind()
    from_json(other, json.loads(json.dumps(record)))
    print(json.dumps(record), other.SerializeToString().hex(), sep="\t")
