/* wrk and h2load cannot present a client certificate. Preloaded, this gives one to every SSL_CTX that they make:
   the certificate chain and the key are read from the PEM file that $BENCH_CERT names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>

SSL_CTX *SSL_CTX_new(const SSL_METHOD *method) {
    SSL_CTX *(*real)(const SSL_METHOD *) = (SSL_CTX * (*)(const SSL_METHOD *)) dlsym(RTLD_NEXT, "SSL_CTX_new");
    SSL_CTX *context = real(method);
    const char *pem = getenv("BENCH_CERT");
    if (context == NULL || pem == NULL)
        return context;
    if (SSL_CTX_use_certificate_chain_file(context, pem) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, pem, SSL_FILETYPE_PEM) != 1) {
        fprintf(stderr, "clientcert: cannot use %s\n", pem);
        exit(1);
    }
    return context;
}
