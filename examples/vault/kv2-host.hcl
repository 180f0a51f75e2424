# A host that opens volumes, and makes keyslots, with KEKs below secret/sealbd (key/value version 2). Without
# "update" nothing is ever overwritten. Where a host only opens, "read" is enough.
path "secret/data/sealbd/*" {
  capabilities = ["create", "read"]
}
