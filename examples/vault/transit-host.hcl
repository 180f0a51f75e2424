# A host that opens volumes, and makes keyslots, under the Transit key "db". Without "create" no token can make a
# key by mistyping its name. Where a host only opens, the first rule can go.
path "transit/encrypt/db" {
  capabilities = ["update"]
}
path "transit/decrypt/db" {
  capabilities = ["update"]
}
