//! Keys, certificates and requests of the specification's worked examples, all for tests only.

/// Private scalar of the certificate authority's P-256 key.
pub(crate) const CA_SCALAR: &str = "035ab3e577942c83e597f161f198d682fe6aa820b891d7f51aaab959b8f5ce61";
/// Private scalar of the leaf's P-256 key.
pub(crate) const LEAF_SCALAR: &str = "2aca946df38db25b8d37c35634f4c9a1d12e4d981b553117b0d7d3808571f7f1";

/// CN=Vector CA, 2025-01-01 to 2049-01-01, a CA with a subject key identifier.
pub(crate) const CA: &str = "\
-----BEGIN CERTIFICATE-----
MIIBSzCB8qADAgECAgEBMAoGCCqGSM49BAMCMBQxEjAQBgNVBAMMCVZlY3RvciBD
QTAeFw0yNTAxMDEwMDAwMDBaFw00OTAxMDEwMDAwMDBaMBQxEjAQBgNVBAMMCVZl
Y3RvciBDQTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABEZsYvlohsApeWecdtoX
YmGoMqftP3pYIBBiB6xPxhcuP/QlW8aDnNzaNJ3214u90Ti7LIxC3pythS5WuaOn
gx2jNTAzMBIGA1UdEwEB/wQIMAYBAf8CAQAwHQYDVR0OBBYEFC2I2hI6lH+RtfQ0
c4EgtPKVgBPbMAoGCCqGSM49BAMCA0gAMEUCIQCsfH4I1ln2Kc1esRRck1gOScWQ
oExVRE8xBh3I/39fGAIgKKg5Tx0Z7hDUfOw6v3GxgkR/1Y2q1CBwkoS8+lFYNmk=
-----END CERTIFICATE-----
";

/// CN=vector-leaf with key usage, extended key usage and an alternative name.
pub(crate) const REQUEST: &str = "\
-----BEGIN CERTIFICATE REQUEST-----
MIIBIDCBxwIBADAWMRQwEgYDVQQDDAt2ZWN0b3ItbGVhZjBZMBMGByqGSM49AgEG
CCqGSM49AwEHA0IABOpxXRdTnZMXTiF8es1B+2SI94nmQn6excFDFXK8pSbloB/o
cXNCaPSZORn2PlMKSt0c2uNp3ZlBClIh7MqsbzygTzBNBgkqhkiG9w0BCQ4xQDA+
MA4GA1UdDwEB/wQEAwIFoDATBgNVHSUEDDAKBggrBgEFBQcDAjAXBgNVHREEEDAO
ggxsZWFmLmV4YW1wbGUwCgYIKoZIzj0EAwIDSAAwRQIhAJrCU0Dkup7ri1E57UMN
qw0S4ZzC1qfaMhT33B5W0B39AiAkfPC+ddCCnGKns3ejI8u00NJaJi5KEejEWNkS
9PSsqQ==
-----END CERTIFICATE REQUEST-----
";
