//! The handles of the worked examples in `keys.md`, 10.2, for tests. They are signed by the key 00 01 02 .. 1f with a nonce of zeros.

/// The handle of the symmetric key `k1`.
pub(crate) const HK: &str = "sr=eyJrZXlfaWQiOnsiS2V5IjoiazEifSwibm9uY2UiOiJBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQT09In0=&sig=0t97oR+1ZLokTPlCiYIg3rmvaqk5IK18eix8sGiRfWA=";

/// The handle of the key pair `device-id`.
pub(crate) const PAIR: &str = "sr=eyJrZXlfaWQiOnsiS2V5UGFpciI6ImRldmljZS1pZCJ9LCJub25jZSI6IkFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBPT0ifQ==&sig=YHTvpkvqcL3EiktdOFQq7mmKNOfS6JESMOkz3ZsmFaM=";
