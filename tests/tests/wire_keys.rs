//! The key service byte for byte: a home directory as the public service leaves it, and the worked examples of `keys.md`, section 10.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{Daemon, Reply, World, device::write_private, hex, openssl, raw};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

const VERSION: &str = "api-version=2021-05-01";
/// Files of section 10.1: the handle key, the symmetric key `k1`, and two key pairs.
const HANDLE_KEY_FILE: &str =
    "handlevalidationkey-40f1ca41fe8b50f53e10f3e3a580dcae24087f37aa498ba9903f2612b03e90ba.key";
const K1_FILE: &str = "k1-6ab9f1eb8f7d3388f4f9d586f66e99fd54080df2c446f0e58668b09c08a16dd0.key";
const EC_FILE: &str = "deviceid-bd732105ef89cf8edd2606a5309c8a26b7b5599a4e124a0fe6199b6b2f60e655.key";
const RSA_FILE: &str = "estid-c45f3e96a312cc524fecceddbc40dfc2aa789eae911d8bc7dd4eda19b93be900.key";

const K1_HANDLE: &str = "sr=eyJrZXlfaWQiOnsiS2V5IjoiazEifSwibm9uY2UiOiJBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQT09In0=&sig=0t97oR+1ZLokTPlCiYIg3rmvaqk5IK18eix8sGiRfWA=";
const EC_HANDLE: &str = "sr=eyJrZXlfaWQiOnsiS2V5UGFpciI6ImRldmljZS1pZCJ9LCJub25jZSI6IkFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBPT0ifQ==&sig=YHTvpkvqcL3EiktdOFQq7mmKNOfS6JESMOkz3ZsmFaM=";

const EC_PAIR: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgtWBvKc7Qy94Xsth9
bXMuX8AqWjuvrhI7YhJ1ZctxMmehRANCAAQAXtSkTFt0lZ1d+6uJzM6qMdk/fnaE
0bglXgPKxcDJrAkGy2d9POF0NDxTMowDbKSwoc7YgR8kTPc2JBlJdleQ
-----END PRIVATE KEY-----
";
const RSA_PAIR: &str = "-----BEGIN PRIVATE KEY-----
MIICdgIBADANBgkqhkiG9w0BAQEFAASCAmAwggJcAgEAAoGBAMULR9ogRQYv1Fr5
x3dJnMYYluIMeBHNKj8n6DtIHQ61hyCheP1dgtOUEz6gok/RnGNB3HUPeMR6qubk
suH+cFjt1OLAAH/6EjeQ5UK13RvUvUcD/zknMAR5qM1a4vldBX9oXKMWlqDKHNcU
XZYs6qwup+d1vd6OgCLmxunEzn6dAgMBAAECgYBOaMnD2/l7l8baGPEt38YZ8ikA
dNPGyayZCylXhb/CXawS6Q57TB3GUfNChatxNckUml2+21REY0fkr3cbhSNxG/ku
frUKwrChW+egR4dHFM0hpSTBCVmPgzVQWhNZH8NNeWllLwQEEedwN9wOyDxw5b/g
0dkEb8ImhznMF+58QQJBAPtbJ5hpE60LB9gmA7eWyOlZMY7SuuYHkWAQ9VZNmJnR
wUWtW5iZIWyJckfwASEl2dkf8oGaVwniENGFf2LwkFECQQDIrz6+XXF3h2gkAp0c
Vi5c2xUwod2AVv/++RQwK8Mcd7VpXQ/KT2n3eyBnv8Sc7jS4phPbsBsv76G2OvQK
EGKNAkA4WEe4950MhlN81ZCxv+BLxs3AKWbyF7Iz6blFXmGd4ZJEr0bAH1uJvAnd
LGTkbFq4PFwdR17JfV6tyRI0OJ7xAkBQhcBvMZ8tjq9Cg6n2jL3dlCpUcR4nOMFO
1TI8gdKvwXiQ5j5HtsWV/1lpR5DkRs/wpvKg23CNM2F3dQAmaZyhAkEAw1YKjEwm
Y33DjmzCFFQ4C7HuxOw/Rnc1D7gxm9YiZmAqG9MRWImaaGP1s7db6gqp6AdkMoYT
/KeMF8NsYyBTMw==
-----END PRIVATE KEY-----
";
const RSA_MODULUS: &str = "xQtH2iBFBi/UWvnHd0mcxhiW4gx4Ec0qPyfoO0gdDrWHIKF4/V2C05QTPqCiT9GcY0HcdQ94xHqq5uSy4f5wWO3U4sAAf/oSN5DlQrXdG9S9RwP/OScwBHmozVri+V0Ff2hcoxaWoMoc1xRdlizqrC6n53W93o6AIubG6cTOfp0=";
const DIGEST_INFO: &str = "MDEwDQYJYIZIAWUDBAIBBQAEILp4Fr+PAc/qQUFA3l2uIiOwA2Gjlhd6nLQQ/2HyABWt";
const RSA_PKCS1: &str = "KLAQzw/KICXJLz/bRMR4Js/eq/4ksVsTgKDQsG70N7eFlUEXuqzsxIjP8XgKAZXnKcFOIfXYYTLiP6TmfP2gBZTgVrcTRnVrzAzjU2rQzDa/2WfHmEf+F2LOcZ02pql3kmrrF5PNEqKGD6wNq3uj/73Wi4UT+6QQlJ/8xnP0PJY=";
const RSA_RAW: &str = "XgTwdYY+0LvQhe1VKwkE2hsdZuO8D7kW0S6IKrnx9n0ceLg5n1Duk+i4ELZqktKJGmDwn//PdmcF7DkKT+331ZmAd83nWT3nqcHZqXnNKkyfZwpyHc22o64elMI9wK21EAg0ihVNGxrwur8gTY5dvJvSm5PaLkYG67M/s/o8GG4=";

/// The home directory of the worked examples, as upstream's files are: mode 0644.
fn prepared() -> Result<World> {
    let world = World::empty()?;
    let folder = world.path("var/lib/aziot/keyd/keys");
    fs::create_dir_all(&folder)?;
    let bytes = |from: u8| (from..from + 32).collect::<Vec<u8>>();
    write_private(&folder.join(HANDLE_KEY_FILE), bytes(0))?;
    write_private(&folder.join(K1_FILE), bytes(0x40))?;
    write_private(&folder.join(EC_FILE), EC_PAIR)?;
    write_private(&folder.join(RSA_FILE), RSA_PAIR)?;
    let mut world = world;
    world.configure_keys(&format!("[[principal]]\nuid = {}\nkeys = [\"*\"]\n", world.uid()?))?;
    world.start(Daemon::Keys)?;
    Ok(world)
}

fn post(world: &World, path: &str, body: &Value) -> Result<Reply> {
    raw::call(&world.socket(Daemon::Keys), "POST", &format!("{path}?{VERSION}"), Some(&body.to_string()))
}

fn base64_of_hex(text: &str) -> Result<String> {
    Ok(STANDARD.encode(hex::decode(text)?))
}

fn signed(handle: &str, message: &[u8]) -> Value {
    json!({ "keyHandle": handle, "algorithm": "HMAC-SHA256", "parameters": { "message": STANDARD.encode(message) } })
}

/// A handle over this text, signed by the prepared handle key.
fn mint(sr: &str) -> Result<String> {
    let signature = base64_of_hex(&openssl::hmac_sha256(&(0..32).collect::<Vec<u8>>(), sr)?)?;
    Ok(format!("sr={}&sig={signature}", STANDARD.encode(sr)))
}

/// 10.1: file names, for keys that this service makes.
#[test]
fn key_files_have_the_public_names() -> Result<()> {
    let world = World::keys("")?;
    let files = [
        ("device-id", EC_FILE),
        ("device-id-temp", "deviceidtemp-18529c9171bde94d93057c5ae38aa55de93bd188cf902aae402ccff020205f2b.key"),
        ("est-id", RSA_FILE),
        (
            "aziot_identityd_master_id",
            "aziotidentitydmasterid-91b92c2c06a5a5dda5fbc9c48b4d428d930b9c1b8b2956a1044ccbc7a266afc9.key",
        ),
        ("k1", K1_FILE),
        ("a/b c%?é", "abc-98eccc62eae486ab5d0420554b26ebb4f78d56d73d62308180b3a04f57cedfb4.key"),
        ("日本", "-cf2abf0c5be326cb922a70f8163f91079c4d9aa8655c60ead89ad545c9de2e92.key"),
        ("", "-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855.key"),
    ];
    let folder = world.path("var/lib/aziot/keyd/keys");
    for (id, file) in files {
        let _ = post(&world, "/key", &json!({ "keyId": id, "usage": "sign" }))?.expect(200)?;
        assert_eq!(fs::metadata(folder.join(file)).with_context(|| format!("the file of {id:?}"))?.len(), 32);
    }
    assert!(folder.join(HANDLE_KEY_FILE).exists());
    assert_eq!(fs::read_dir(&folder)?.count(), files.len() + 1);
    Ok(())
}

/// 10.2 in: handles that the public service signed, in all accepted spellings, and the rejected ones.
#[test]
fn handles_of_the_public_service_are_understood() -> Result<()> {
    let world = prepared()?;
    let expected = r#"{"signature":"AQQykAlNzSEQds2eZsR49XiRhWw9v1lQ9RFBkRtspDM="}"#;
    let (sr, sig) = K1_HANDLE.split_once('&').context("no signature")?;
    let nonce = format!("{}==", "A".repeat(86));
    assert_eq!(mint(&format!(r#"{{"key_id":{{"Key":"k1"}},"nonce":"{nonce}"}}"#))?, K1_HANDLE);
    let accepted = [
        K1_HANDLE.to_owned(),
        format!("{sig}&{sr}"),
        format!("{K1_HANDLE}&se=1"),
        format!("sr=AAAA&{K1_HANDLE}"),
        mint(&format!("{{ \"nonce\" : \"{nonce}\",\n\"more\":1, \"key_id\" :{{\"Key\":\"k1\"}}}}"))?,
        mint(r#"{"key_id":{"Key":"k1"},"nonce":""}"#)?,
    ];
    for handle in accepted {
        let reply = post(&world, "/sign", &signed(&handle, b"hello"))?;
        assert_eq!((reply.status, reply.body.as_str()), (200, expected), "{handle}");
    }
    let refused = [
        sr.to_owned(),
        sig.to_owned(),
        String::new(),
        K1_HANDLE[..K1_HANDLE.len() - 4].to_owned(),
        K1_HANDLE.trim_end_matches('=').to_owned(),
        K1_HANDLE.replace("oR+1", "oR-1"),
        K1_HANDLE.replace("sr=eyJ", "sr=fyJ"),
        K1_HANDLE.replace("fWA=", "fWB="),
        mint(r#"{"key_id":{"Key":"k1"}}"#)?,
        mint("no JSON")?,
        // Nobody gets at the handle key, not even with a handle: section 11, item 2.
        mint(&format!(r#"{{"key_id":{{"Key":"handle-validation-key"}},"nonce":"{nonce}"}}"#))?,
    ];
    for handle in refused {
        let reply = post(&world, "/sign", &signed(&handle, b"hello"))?;
        ensure!([400, 401].contains(&reply.status), "{handle}: {reply:?}");
    }
    Ok(())
}

/// 10.2 out: a handle of ours has the public form, to the byte but for the nonce, and the public service would accept it.
#[test]
fn our_handles_are_the_public_ones() -> Result<()> {
    let world = prepared()?;
    let handle = |path: &str, body: Value| post(&world, path, &body)?.expect(200)?.text("/keyHandle");
    let symmetric = handle("/key", json!({ "keyId": "k1", "usage": "sign" }))?;
    let pair = handle("/keypair", json!({ "keyId": "device-id" }))?;
    let derived = handle(
        "/derivedkey",
        json!({ "baseKeyHandle": K1_HANDLE, "derivationData": STANDARD.encode("modA:1:primary") }),
    )?;
    assert_eq!((symmetric.len(), derived.len()), (216, 580));
    let numbers = "109,111,100,65,58,49,58,112,114,105,109,97,114,121";
    let expected = [
        (symmetric, r#"{"Key":"k1"}"#.to_owned()),
        (pair, r#"{"KeyPair":"device-id"}"#.to_owned()),
        (derived, format!(r#"{{"Derived":["{K1_HANDLE}",[{numbers}]]}}"#)),
    ];
    for (handle, key) in expected {
        let sr = handle.strip_prefix("sr=").and_then(|rest| rest.split_once("&sig=")).context("no handle")?.0;
        let text = String::from_utf8(STANDARD.decode(sr)?)?;
        let nonce =
            text.strip_prefix(&format!("{{\"key_id\":{key},\"nonce\":\"")).and_then(|rest| rest.strip_suffix("\"}"));
        assert_eq!(STANDARD.decode(nonce.with_context(|| text.clone())?)?.len(), 64);
        assert_eq!(mint(&text)?, handle);
    }
    // Ids that JSON has to escape, in the public service's way.
    let odd = handle("/key", json!({ "keyId": "q\" b\\ n\n u\u{1} /é", "usage": "sign" }))?;
    let sr = odd.strip_prefix("sr=").and_then(|rest| rest.split_once('&')).context("no handle")?.0;
    let text = String::from_utf8(STANDARD.decode(sr)?)?;
    assert!(text.starts_with(r#"{"key_id":{"Key":"q\" b\\ n\n u\u0001 /é"},"nonce":""#), "{text}");
    Ok(())
}

/// 10.3: HMAC and derived keys.
#[test]
fn hmac_and_derivation_give_the_public_values() -> Result<()> {
    let world = prepared()?;
    let empty = post(&world, "/sign", &signed(K1_HANDLE, b""))?.expect(200)?.text("/signature")?;
    assert_eq!(empty, base64_of_hex("6656ed44406d8895497b1b8d854118fcd7790e181ce6ea7ca4eed793f0fcd594")?);
    let derived = json!({ "baseKeyHandle": K1_HANDLE, "derivationData": STANDARD.encode("modA:1:primary") });
    let derived = post(&world, "/derivedkey", &derived)?.expect(200)?.text("/keyHandle")?;
    let exported = post(&world, "/derivedkey/export", &json!({ "keyHandle": derived }))?.expect(200)?;
    assert_eq!(exported.body, r#"{"key":"gqL6+afNgnlOBxxrGgRlveOuRq2/BaxtOSSzZFKddVw="}"#);
    let signature = post(&world, "/sign", &signed(&derived, b"hello"))?.expect(200)?.text("/signature")?;
    assert_eq!(signature, base64_of_hex("8ae8ff4488ed75342a8b279dee9478288643a22124d994d53579613ea8fdc8d6")?);
    Ok(())
}

/// 10.4: AES-256-GCM with IVs of all lengths, both layouts, and what is refused.
#[test]
fn aead_gives_the_public_values() -> Result<()> {
    let world = prepared()?;
    let derived = json!({ "baseKeyHandle": K1_HANDLE, "derivationData": STANDARD.encode("modA:1:primary") });
    let derived = post(&world, "/derivedkey", &derived)?.expect(200)?.text("/keyHandle")?;
    let iv12 = "000102030405060708090a0b".to_owned();
    let iv128 = hex::encode(&(0..128).collect::<Vec<u8>>());
    let ascii = hex::encode(b"123e4567e89b12d3a456426614174000");
    let body = |handle: &str, iv: &str, aad: &str, name: &str, data: &[u8]| -> Result<Value> {
        let parameters = json!({ "iv": base64_of_hex(iv)?, "aad": STANDARD.encode(aad) });
        Ok(json!({ "keyHandle": handle, "algorithm": "AEAD", "parameters": parameters, name: STANDARD.encode(data) }))
    };
    let layout2 = "02496a011d57fc28c1ab7cf4a7c099a39373afb7d904b0f728907694833490";
    let layout1 = "01a39373afb7d904b0f728907694833490496a011d57fc28c1ab7cf4a7c099";
    let cases = [
        (K1_HANDLE, iv12.as_str(), "$iotedged", "some plaintext", layout2),
        (K1_HANDLE, &iv12, "$iotedged", "", "02b7ea4334aedf484bfc0d12346b5a8d7e"),
        (K1_HANDLE, &iv12, "", "some plaintext", "02496a011d57fc28c1ab7cf4a7c0999230889a2e2b3110ca5524b392f3f400"),
        (K1_HANDLE, "6162636465666768", "aa", "p", "02fa2d5f461f75fa0e38ce8fdc6dfc0e794d"),
        (
            K1_HANDLE,
            &"00".repeat(16),
            "$iotedged",
            "some plaintext",
            "02767d2e61d826adb04c0a50b8b60cc8413610d0def904b740457edc5c1bac",
        ),
        (
            K1_HANDLE,
            &ascii,
            "$iotedged",
            "some plaintext",
            "0211d0c0be7b57b681df1de8a28767de359008ee0fd4ab4aea73e136932716",
        ),
        (
            K1_HANDLE,
            &iv128,
            "$iotedged",
            "some plaintext",
            "029f1c34e37c01aed4e9e6821c8775ed9de17887f9433800b419f953bbfde6",
        ),
        (
            &derived,
            &iv12,
            "$iotedged",
            "some plaintext",
            "028d250aaa0af1de92dd19e6cfbfb503ec6d4d187d9666075cc5102d3e22ff",
        ),
    ];
    for (handle, iv, aad, plaintext, ciphertext) in cases {
        let sealed =
            post(&world, "/encrypt", &body(handle, iv, aad, "plaintext", plaintext.as_bytes())?)?.expect(200)?;
        assert_eq!(sealed.text("/ciphertext")?, base64_of_hex(ciphertext)?, "iv {iv}");
        let opened =
            post(&world, "/decrypt", &body(handle, iv, aad, "ciphertext", &hex::decode(ciphertext)?)?)?.expect(200)?;
        assert_eq!(opened.text("/plaintext")?, STANDARD.encode(plaintext));
    }
    let decrypt = |data: &[u8]| -> Result<u16> {
        Ok(post(&world, "/decrypt", &body(K1_HANDLE, &iv12, "$iotedged", "ciphertext", data)?)?.status)
    };
    assert_eq!(decrypt(&hex::decode(layout1)?)?, 200);
    let mut flipped = hex::decode(layout2)?;
    *flipped.last_mut().context("empty")? ^= 1;
    assert_eq!(decrypt(&flipped)?, 500, "last byte flipped");
    let mut unknown = hex::decode(layout2)?;
    unknown[0] = 3;
    assert_eq!(decrypt(&unknown)?, 400, "unknown version");
    assert_eq!(decrypt(b"")?, 400, "empty");
    assert_eq!(decrypt(&[2; 16])?, 400, "no room for a tag");
    for iv in ["", &"00".repeat(129)] {
        assert_eq!(
            post(&world, "/encrypt", &body(K1_HANDLE, iv, "", "plaintext", b"p")?)?.status,
            500,
            "IV of {} bytes",
            iv.len() / 2
        );
    }
    for length in [16, 64] {
        let import = json!({ "keyId": "short", "usage": "encrypt", "keyBytes": STANDARD.encode(vec![7; length]) });
        let short = post(&world, "/key", &import)?.expect(200)?.text("/keyHandle")?;
        assert_eq!(
            post(&world, "/encrypt", &body(&short, &iv12, "", "plaintext", b"p")?)?.status,
            500,
            "key of {length} bytes"
        );
    }
    Ok(())
}

/// 10.5: an EC pair, its public parameters, and a signature that openssl verifies.
#[test]
fn an_ec_pair_shows_and_signs_as_the_public_one() -> Result<()> {
    let world = prepared()?;
    let value = |name: &str| post(&world, &format!("/parameters/{name}"), &json!({ "keyHandle": EC_HANDLE }));
    assert_eq!(value("algorithm")?.expect(200)?.body, r#"{"value":"ECDSA"}"#);
    assert_eq!(value("ec-curve-oid")?.expect(200)?.body, r#"{"value":"BggqhkjOPQMBBw=="}"#);
    assert_eq!(value("ec-point")?.expect(200)?.body, r#"{"value":"AgBe1KRMW3SVnV37q4nMzqox2T9+doTRuCVeA8rFwMms"}"#);
    assert_eq!(value("rsa-modulus")?.status, 400);
    assert_eq!(value("nope")?.status, 400);
    let digest = base64_of_hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")?;
    let sign = json!({ "keyHandle": EC_HANDLE, "algorithm": "ECDSA", "parameters": { "digest": digest } });
    let signature = STANDARD.decode(post(&world, "/sign", &sign)?.expect(200)?.text("/signature")?)?;
    let (key, public, file) = (world.path("ec.pem"), world.path("ec.pub.pem"), world.path("signature"));
    write_private(&key, EC_PAIR)?;
    openssl::run(
        ["pkey".as_ref(), "-in".as_ref(), key.as_os_str(), "-pubout".as_ref(), "-out".as_ref(), public.as_os_str()],
        "",
    )?;
    for signature in [
        signature,
        STANDARD.decode(
            "MEQCIE8XPjKppb8tFo51NLMLbhYoHNA56Wcw3DvnAb5rQOuzAiABrLFOZz5BdX9fA6fByhsppcl5PsknGCKXciQFwq694g==",
        )?,
    ] {
        write_private(&file, signature)?;
        let arguments = [
            "dgst".as_ref(),
            "-sha256".as_ref(),
            "-verify".as_ref(),
            public.as_os_str(),
            "-signature".as_ref(),
            file.as_os_str(),
        ];
        assert_eq!(openssl::run(arguments, "abc")?.trim(), "Verified OK");
    }
    // The same pair again, whatever algorithm is preferred: 1.5.
    let create = json!({ "keyId": "device-id", "preferredAlgorithms": "rsa-2048" });
    let _ = post(&world, "/keypair", &create)?.expect(200)?;
    assert_eq!(value("algorithm")?.expect(200)?.body, r#"{"value":"ECDSA"}"#);
    assert_eq!(fs::read_to_string(world.path("var/lib/aziot/keyd/keys").join(EC_FILE))?, EC_PAIR);
    Ok(())
}

/// 10.6: an RSA pair and its two private operations.
#[test]
fn an_rsa_pair_shows_and_signs_as_the_public_one() -> Result<()> {
    let world = prepared()?;
    let handle = raw::call(&world.socket(Daemon::Keys), "GET", &format!("/keypair/est-id?{VERSION}"), None)?
        .expect(200)?
        .text("/keyHandle")?;
    let value = |name: &str| {
        post(&world, &format!("/parameters/{name}"), &json!({ "keyHandle": handle }))?.expect(200)?.text("/value")
    };
    assert_eq!(value("algorithm")?, "RSA");
    assert_eq!(value("rsa-modulus")?, RSA_MODULUS);
    assert_eq!(value("rsa-exponent")?, "AQAB");
    let raw_block: Vec<u8> = (0..128).collect();
    for (algorithm, plaintext, ciphertext) in
        [("RSA-PKCS1", DIGEST_INFO.to_owned(), RSA_PKCS1), ("RSA-NO-PADDING", STANDARD.encode(raw_block), RSA_RAW)]
    {
        let body = json!({ "keyHandle": handle, "algorithm": algorithm, "plaintext": plaintext });
        assert_eq!(post(&world, "/encrypt", &body)?.expect(200)?.body, format!(r#"{{"ciphertext":"{ciphertext}"}}"#));
        let with_parameters =
            json!({ "keyHandle": handle, "algorithm": algorithm, "parameters": {}, "plaintext": plaintext });
        assert_eq!(post(&world, "/encrypt", &with_parameters)?.status, 422);
        let decrypt = json!({ "keyHandle": handle, "algorithm": algorithm, "ciphertext": plaintext });
        assert_eq!(post(&world, "/decrypt", &decrypt)?.status, 400);
    }
    Ok(())
}

/// 10.7: preferred algorithms, and ids in paths.
#[test]
fn algorithms_and_ids_are_parsed_as_the_public_service_does() -> Result<()> {
    let world = World::keys("")?;
    for (number, (preferred, algorithm)) in [
        (Value::Null, "ECDSA"),
        (json!("*"), "ECDSA"),
        (json!("rsa-2048:*"), "RSA"),
        (json!("ec-p256:rsa-4096:*"), "ECDSA"),
        (json!("foo:rsa-2048"), "RSA"),
    ]
    .into_iter()
    .enumerate()
    {
        let create = json!({ "keyId": format!("p{number}"), "preferredAlgorithms": preferred });
        let handle = post(&world, "/keypair", &create)?.expect(200)?.text("/keyHandle")?;
        let shown =
            post(&world, "/parameters/algorithm", &json!({ "keyHandle": handle }))?.expect(200)?.text("/value")?;
        assert_eq!(shown, algorithm, "{preferred}");
    }
    for preferred in ["", "foo", "EC-P256", " ec-p256"] {
        let create = json!({ "keyId": "none", "preferredAlgorithms": preferred });
        assert_eq!(post(&world, "/keypair", &create)?.status, 400, "{preferred:?}");
    }
    for (id, path, status) in [
        ("a/b c%?é", "a%2Fb%20c%25%3F%C3%A9", 200),
        ("a%41", "a%41", 400),
        ("per%cent", "per%cent", 404),
        ("plus+x", "plus+x", 200),
    ] {
        let _ = post(&world, "/key", &json!({ "keyId": id, "usage": "sign" }))?.expect(200)?;
        let reply = raw::call(&world.socket(Daemon::Keys), "GET", &format!("/key/{path}?{VERSION}"), None)?;
        assert_eq!(reply.status, status, "{id}");
    }
    Ok(())
}

/// 1.2: what the synchronous client inside deployed agents needs: no `Host`, the request in pieces, the head in one read of 512 bytes, and
/// the end of the connection after a 204.
#[test]
fn the_oldest_client_is_served() -> Result<()> {
    use std::io::{Read as _, Write as _};
    let world = prepared()?;
    let body = signed(K1_HANDLE, b"hello").to_string();
    let length = body.len().to_string();
    let mut stream = raw::connect(&world.socket(Daemon::Keys))?;
    for piece in [
        "POST",
        " ",
        "/sign",
        "?",
        VERSION,
        " HTTP/1.1\r\n",
        "content-length: ",
        &length,
        "\r\n",
        "content-type: application/json\r\n\r\n",
        &body,
    ] {
        stream.write_all(piece.as_bytes())?;
    }
    let mut first = [0; 512];
    let read = stream.read(&mut first)?;
    let text = String::from_utf8_lossy(&first[..read]).into_owned();
    let head = text.split_once("\r\n\r\n").with_context(|| format!("no whole head in {text:?}"))?.0;
    let mut lines: Vec<&str> = head.split("\r\n").collect();
    assert!(lines.pop().is_some_and(|date| date.starts_with("date: ")), "{head}");
    assert_eq!(lines, ["HTTP/1.1 200 OK", "content-type: application/json", "content-length: 60"]);

    let create = post(&world, "/key", &json!({ "keyId": "gone", "usage": "sign" }))?.expect(200)?;
    let body = json!({ "keyHandle": create.text("/keyHandle")? }).to_string();
    let mut stream = raw::connect(&world.socket(Daemon::Keys))?;
    stream.write_all(
        format!(
            "DELETE /key?{VERSION} HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .as_bytes(),
    )?;
    let answer = raw::read_to_end(&mut stream)?;
    assert!(answer.starts_with("HTTP/1.1 204 No Content\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    Ok(())
}
