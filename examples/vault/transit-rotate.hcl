# Beside transit-host.hcl, for whoever runs `sealbd rotate --kek`: a new version of the Transit key "db".
path "transit/keys/db/rotate" {
  capabilities = ["update"]
}
