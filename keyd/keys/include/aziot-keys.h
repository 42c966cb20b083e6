// The C ABI of key libraries for aziot-keyd. See aziot-keys(3).
//
// A key library exports one symbol, aziot_keys_get_function_list. aziot-keyd has one built in; with `keys_library` in its
// configuration it loads another one instead. libaziot_keys.so is the built-in one for programs of your own.
//
// Rules for both sides:
// * Text is UTF-8 and ends with a NUL byte. The library keeps no pointer after a call.
// * Every function returns a code. There are no other errors: no exception and no longjmp leaves a function.
// * Where a result has a pointer and a length, the buffer is the caller's. With a pointer of NULL the function only sets the length, to
//   what the result has at most. Otherwise the length is the size of the buffer, and becomes that of the result; in a buffer that is
//   too small nothing is put, the code is AZIOT_KEYS_RC_ERR_INVALID_PARAMETER and the length is as with NULL.
// * Input of no bytes has a pointer that is not NULL.
// * aziot-keyd makes one call at a time, all from one thread. Other programs may use other threads, but one at a time.


#ifndef AZIOT_KEYS_H
#define AZIOT_KEYS_H

// Made by cbindgen from keyd/keys/src/ffi/abi.rs: change that file, not this one.

#include <stdint.h>

// Done.
#define AZIOT_KEYS_RC_OK 0

// The caller is at fault: a NULL pointer, text that is not UTF-8, a buffer that is too small, a key that does not exist, an
// operation that the key cannot do.
#define AZIOT_KEYS_RC_ERR_INVALID_PARAMETER 1

// The library or something beneath it failed: the disk, the token, the cryptographic operation.
#define AZIOT_KEYS_RC_ERR_EXTERNAL 2

// Version of a function list, 0x02000000. Lists of this version have neither `move_key_pair` nor the two `delete` functions.
#define AZIOT_KEYS_VERSION_2_0_0_0 33554432

// Version of a function list, 0x02010000: the newest.
#define AZIOT_KEYS_VERSION_2_1_0_0 33619968

// `AZIOT_KEYS_GET_KEY_PAIR_PARAMETER`: one of `AZIOT_KEYS_KEY_PAIR_PARAMETER_ALGORITHM_*` as an `unsigned int` of this machine.
#define AZIOT_KEYS_KEY_PAIR_PARAMETER_TYPE_ALGORITHM 1

// `AZIOT_KEYS_GET_KEY_PAIR_PARAMETER`: the OID of the curve as DER, tag and length included.
#define AZIOT_KEYS_KEY_PAIR_PARAMETER_TYPE_EC_CURVE_OID 2

// `AZIOT_KEYS_GET_KEY_PAIR_PARAMETER`: the public point in the compressed form of SEC 1.
#define AZIOT_KEYS_KEY_PAIR_PARAMETER_TYPE_EC_POINT 3

// `AZIOT_KEYS_GET_KEY_PAIR_PARAMETER`: the modulus, big-endian, without leading zeros.
#define AZIOT_KEYS_KEY_PAIR_PARAMETER_TYPE_RSA_MODULUS 4

// `AZIOT_KEYS_GET_KEY_PAIR_PARAMETER`: the public exponent, big-endian, without leading zeros.
#define AZIOT_KEYS_KEY_PAIR_PARAMETER_TYPE_RSA_EXPONENT 5

// The key pair signs with ECDSA.
#define AZIOT_KEYS_KEY_PAIR_PARAMETER_ALGORITHM_EC 1

// The key pair is an RSA pair.
#define AZIOT_KEYS_KEY_PAIR_PARAMETER_ALGORITHM_RSA 2

// Usage flag: other keys are derived from the key. The same flag as `AZIOT_KEYS_KEY_USAGE_SIGN`.
#define AZIOT_KEYS_KEY_USAGE_DERIVE 1

// Usage flag: the key signs.
#define AZIOT_KEYS_KEY_USAGE_SIGN 1

// Usage flag: the key encrypts and decrypts.
#define AZIOT_KEYS_KEY_USAGE_ENCRYPT 16

// ECDSA over a digest that the caller has made. The signature is DER. Parameters: NULL.
#define AZIOT_KEYS_SIGN_MECHANISM_ECDSA 1

// HMAC-SHA256 over a message of any length. Parameters: NULL.
#define AZIOT_KEYS_SIGN_MECHANISM_HMAC_SHA256 2

// Another mechanism, with a key derived from the given one. Parameters: `AZIOT_KEYS_SIGN_DERIVED_PARAMETERS`.
#define AZIOT_KEYS_SIGN_MECHANISM_DERIVED 3

// AES-GCM with a 16-byte tag. Parameters: `AZIOT_KEYS_ENCRYPT_AEAD_PARAMETERS`.
#define AZIOT_KEYS_ENCRYPT_MECHANISM_AEAD 1

// The RSA private operation on input padded as PKCS #1 v1.5 signatures are (block type 1). Parameters: NULL.
#define AZIOT_KEYS_ENCRYPT_MECHANISM_RSA_PKCS1 2

// The RSA private operation on input as long as the modulus. Parameters: NULL.
#define AZIOT_KEYS_ENCRYPT_MECHANISM_RSA_NO_PADDING 3

// Another mechanism, with a key derived from the given one. Parameters: `AZIOT_KEYS_ENCRYPT_DERIVED_PARAMETERS`.
#define AZIOT_KEYS_ENCRYPT_MECHANISM_DERIVED 4

// What every function returns: one of the `AZIOT_KEYS_RC_*` codes. Any other value counts as `AZIOT_KEYS_RC_ERR_EXTERNAL`.
typedef unsigned int AZIOT_KEYS_RC;

// What each function list begins with. `version` says which list it is; cast the pointer to that one.
typedef struct AZIOT_KEYS_FUNCTION_LIST {
  // One of `AZIOT_KEYS_VERSION_*`.
  unsigned int version;
} AZIOT_KEYS_FUNCTION_LIST;

// Sets a parameter of the library, such as where it keeps its keys. All parameters are set before the first key is used.
//
// A parameter named `preloaded_key:` and a key id binds that id to the place in `value`, whether or not the key is there yet.
typedef AZIOT_KEYS_RC (*AZIOT_KEYS_SET_PARAMETER)(const char *name, const char *value);

// Makes the key pair `id` unless it exists. `preferred_algorithms` is a list such as `ec-p256:rsa-2048:*`, best first, or NULL for any.
typedef AZIOT_KEYS_RC (*AZIOT_KEYS_CREATE_KEY_PAIR_IF_NOT_EXISTS)(const char *id, const char *preferred_algorithms);

// Makes sure that the key pair `id` exists and can be used.
typedef AZIOT_KEYS_RC (*AZIOT_KEYS_LOAD_KEY_PAIR)(const char *id);

// Gets a public parameter of the key pair `id`; `type` is one of `AZIOT_KEYS_KEY_PAIR_PARAMETER_TYPE_*`.
typedef AZIOT_KEYS_RC (*AZIOT_KEYS_GET_KEY_PAIR_PARAMETER)(const char *id,
                                                           unsigned int type,
                                                           unsigned char *value,
                                                           uintptr_t *value_len);

// Makes the symmetric key `id` unless it exists. `usage` is a combination of `AZIOT_KEYS_KEY_USAGE_*`.
typedef AZIOT_KEYS_RC (*AZIOT_KEYS_CREATE_KEY_IF_NOT_EXISTS)(const char *id, unsigned int usage);

// Makes sure that the symmetric key `id` exists and can be used.
typedef AZIOT_KEYS_RC (*AZIOT_KEYS_LOAD_KEY)(const char *id);

// Makes `bytes` the symmetric key `id`, in place of the one that is there.
typedef AZIOT_KEYS_RC (*AZIOT_KEYS_IMPORT_KEY)(const char *id,
                                               const uint8_t *bytes,
                                               uintptr_t bytes_len,
                                               unsigned int usage);

// Derives a key: the HMAC-SHA256 of `derivation_data` under the key `base_id`.
typedef AZIOT_KEYS_RC (*AZIOT_KEYS_DERIVE_KEY)(const char *base_id,
                                               const uint8_t *derivation_data,
                                               uintptr_t derivation_data_len,
                                               unsigned char *derived_key,
                                               uintptr_t *derived_key_len);

// Signs `digest` with the key or key pair `id`; `mechanism` is one of `AZIOT_KEYS_SIGN_MECHANISM_*`.
typedef AZIOT_KEYS_RC (*AZIOT_KEYS_SIGN)(const char *id,
                                         unsigned int mechanism,
                                         const void *parameters,
                                         const unsigned char *digest,
                                         uintptr_t digest_len,
                                         unsigned char *signature,
                                         uintptr_t *signature_len);

// Checks a signature. With `AZIOT_KEYS_RC_OK`, `*ok` is 1 if it is good and otherwise 0; a signature of a wrong length is merely not good.
typedef AZIOT_KEYS_RC (*AZIOT_KEYS_VERIFY)(const char *id,
                                           unsigned int mechanism,
                                           const void *parameters,
                                           const unsigned char *digest,
                                           uintptr_t digest_len,
                                           const unsigned char *signature,
                                           uintptr_t signature_len,
                                           int *ok);

// Encrypts `plaintext` with the key or key pair `id`; `mechanism` is one of `AZIOT_KEYS_ENCRYPT_MECHANISM_*`.
typedef AZIOT_KEYS_RC (*AZIOT_KEYS_ENCRYPT)(const char *id,
                                            unsigned int mechanism,
                                            const void *parameters,
                                            const unsigned char *plaintext,
                                            uintptr_t plaintext_len,
                                            unsigned char *ciphertext,
                                            uintptr_t *ciphertext_len);

// Decrypts `ciphertext`, which `AZIOT_KEYS_ENCRYPT` made with the same id, mechanism and parameters.
typedef AZIOT_KEYS_RC (*AZIOT_KEYS_DECRYPT)(const char *id,
                                            unsigned int mechanism,
                                            const void *parameters,
                                            const unsigned char *ciphertext,
                                            uintptr_t ciphertext_len,
                                            unsigned char *plaintext,
                                            uintptr_t *plaintext_len);

// The functions of a library of version 2.0.0.0. None of them is NULL.
typedef struct AZIOT_KEYS_FUNCTION_LIST_2_0_0_0 {
  unsigned int version;
  AZIOT_KEYS_SET_PARAMETER set_parameter;
  AZIOT_KEYS_CREATE_KEY_PAIR_IF_NOT_EXISTS create_key_pair_if_not_exists;
  AZIOT_KEYS_LOAD_KEY_PAIR load_key_pair;
  AZIOT_KEYS_GET_KEY_PAIR_PARAMETER get_key_pair_parameter;
  AZIOT_KEYS_CREATE_KEY_IF_NOT_EXISTS create_key_if_not_exists;
  AZIOT_KEYS_LOAD_KEY load_key;
  AZIOT_KEYS_IMPORT_KEY import_key;
  AZIOT_KEYS_DERIVE_KEY derive_key;
  AZIOT_KEYS_SIGN sign;
  AZIOT_KEYS_VERIFY verify;
  AZIOT_KEYS_ENCRYPT encrypt;
  AZIOT_KEYS_DECRYPT decrypt;
} AZIOT_KEYS_FUNCTION_LIST_2_0_0_0;

// Gives the key pair `from` the id `to`, in place of the pair that has it.
typedef AZIOT_KEYS_RC (*AZIOT_KEYS_MOVE_KEY_PAIR)(const char *from, const char *to);

// Deletes the key pair `id`. One that does not exist is no error.
typedef AZIOT_KEYS_RC (*AZIOT_KEYS_DELETE_KEY_PAIR)(const char *id);

// Deletes the symmetric key `id`. One that does not exist is no error.
typedef AZIOT_KEYS_RC (*AZIOT_KEYS_DELETE_KEY)(const char *id);

// The functions of a library of version 2.1.0.0. None of them is NULL.
typedef struct AZIOT_KEYS_FUNCTION_LIST_2_1_0_0 {
  unsigned int version;
  AZIOT_KEYS_SET_PARAMETER set_parameter;
  AZIOT_KEYS_CREATE_KEY_PAIR_IF_NOT_EXISTS create_key_pair_if_not_exists;
  AZIOT_KEYS_MOVE_KEY_PAIR move_key_pair;
  AZIOT_KEYS_LOAD_KEY_PAIR load_key_pair;
  AZIOT_KEYS_GET_KEY_PAIR_PARAMETER get_key_pair_parameter;
  AZIOT_KEYS_DELETE_KEY_PAIR delete_key_pair;
  AZIOT_KEYS_CREATE_KEY_IF_NOT_EXISTS create_key_if_not_exists;
  AZIOT_KEYS_LOAD_KEY load_key;
  AZIOT_KEYS_IMPORT_KEY import_key;
  AZIOT_KEYS_DELETE_KEY delete_key;
  AZIOT_KEYS_DERIVE_KEY derive_key;
  AZIOT_KEYS_SIGN sign;
  AZIOT_KEYS_VERIFY verify;
  AZIOT_KEYS_ENCRYPT encrypt;
  AZIOT_KEYS_DECRYPT decrypt;
} AZIOT_KEYS_FUNCTION_LIST_2_1_0_0;

// Parameters of `AZIOT_KEYS_SIGN_MECHANISM_DERIVED`. The id of the call is that of the base key.
typedef struct AZIOT_KEYS_SIGN_DERIVED_PARAMETERS {
  // What the key is derived with.
  const unsigned char *derivation_data;
  // Length of the derivation data.
  uintptr_t derivation_data_len;
  // One of `AZIOT_KEYS_SIGN_MECHANISM_*` that the derived key can be used with.
  unsigned int mechanism;
  // The parameters of that mechanism.
  const void *parameters;
} AZIOT_KEYS_SIGN_DERIVED_PARAMETERS;

// Parameters of `AZIOT_KEYS_ENCRYPT_MECHANISM_AEAD`.
typedef struct AZIOT_KEYS_ENCRYPT_AEAD_PARAMETERS {
  // Initialization vector; the ciphertext does not hold it.
  const unsigned char *iv;
  // Length of the initialization vector. Not only 12.
  uintptr_t iv_len;
  // Additional authenticated data.
  const unsigned char *aad;
  // Length of the additional data.
  uintptr_t aad_len;
} AZIOT_KEYS_ENCRYPT_AEAD_PARAMETERS;

// Parameters of `AZIOT_KEYS_ENCRYPT_MECHANISM_DERIVED`. The id of the call is that of the base key.
typedef struct AZIOT_KEYS_ENCRYPT_DERIVED_PARAMETERS {
  // What the key is derived with.
  const unsigned char *derivation_data;
  // Length of the derivation data.
  uintptr_t derivation_data_len;
  // One of `AZIOT_KEYS_ENCRYPT_MECHANISM_*` that the derived key can be used with.
  unsigned int mechanism;
  // The parameters of that mechanism.
  const void *parameters;
} AZIOT_KEYS_ENCRYPT_DERIVED_PARAMETERS;





#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Gets the functions of this library: the only symbol that it exports.
//
// `*out` becomes a pointer to a list that is never freed and never changes. Its `version` says which list it is, and is the version asked
// for. A version that this library does not have, and an `out` of NULL, are `AZIOT_KEYS_RC_ERR_INVALID_PARAMETER`.
//
// # Safety
//
// `out` is NULL, or a pointer can be written there.
AZIOT_KEYS_RC aziot_keys_get_function_list(unsigned int version,
                                           const struct AZIOT_KEYS_FUNCTION_LIST **out);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* AZIOT_KEYS_H */
