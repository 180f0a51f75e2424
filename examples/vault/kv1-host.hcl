# A host that opens volumes, and makes keyslots, with KEKs below kv/sealbd (key/value version 1). Without
# "update" nothing is ever overwritten: version 1 keeps no old values. Where a host only opens, "read" is enough.
path "kv/sealbd/*" {
  capabilities = ["create", "read"]
}
