# Beside kv2-host.hcl, for whoever runs `sealbd rotate --kek` with retirement, or `sealbd erase`.
path "secret/metadata/sealbd/*" {
  capabilities = ["delete"]
}
