# In place of kv1-host.hcl, for whoever runs `sealbd rotate --kek` with retirement, or `sealbd erase`. Rules for
# one path do not add up within a policy, so this one names all three rights.
path "kv/sealbd/*" {
  capabilities = ["create", "read", "delete"]
}
