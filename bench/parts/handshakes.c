/* TLS handshakes: each of THREADS threads connects, verifies the server, presents a client certificate, sends one
   request, reads the answer to its end, and starts again. With "resume" it offers the session of its last connection.
   usage: handshakes PORT PATH THREADS SECONDS CLIENT_PEM CA_PEM full|resume
   prints one JSON object; latencies are of connect + handshake + first answer, in seconds. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 4000000 };
static SSL_CTX *context;
static struct sockaddr_in address;
static char request[512];
static int resume;
static double end;
static float *times;
static atomic_int done, resumed, failed;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* Returns 1 when a whole answer with status 200 came; *session is renewed with the newest ticket. */
static int once(SSL_SESSION **session) {
    char answer[16384];
    int ok = 0, got, total = 0;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct timeval limit = {5, 0};
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    /* Without it the request waits 40 ms for the delayed acknowledgement of the client's own Finished. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    SSL *ssl = SSL_new(context);
    SSL_set_fd(ssl, fd);
    if (resume && *session)
        SSL_set_session(ssl, *session);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0 && SSL_connect(ssl) == 1 &&
        SSL_get_verify_result(ssl) == X509_V_OK && SSL_write(ssl, request, strlen(request)) > 0) {
        while (total < (int)sizeof answer && (got = SSL_read(ssl, answer + total, sizeof answer - total)) > 0)
            total += got;
        ok = total > 12 && memcmp(answer, "HTTP/1.1 200", 12) == 0;
        if (ok && SSL_session_reused(ssl))
            atomic_fetch_add(&resumed, 1);
        if (resume) {
            if (*session)
                SSL_SESSION_free(*session);
            *session = SSL_get1_session(ssl);
        }
    }
    SSL_set_shutdown(ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN); /* a session whose SSL was not shut down is void */
    SSL_free(ssl);
    ERR_clear_error();
    close(fd);
    return ok;
}

static void *worker(void *unused) {
    SSL_SESSION *session = NULL;
    if (resume)
        once(&session); /* the connection that earns the first ticket is not counted as resumed */
    while (now() < end) {
        double began = now();
        if (once(&session)) {
            int at = atomic_fetch_add(&done, 1);
            if (at < MOST)
                times[at] = now() - began;
        } else {
            atomic_fetch_add(&failed, 1);
        }
    }
    return unused;
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 8)
        return 2;
    int threads = atoi(argv[3]);
    times = malloc(MOST * sizeof *times);
    address.sin_family = AF_INET;
    address.sin_port = htons(atoi(argv[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", argv[2]);
    resume = strcmp(argv[7], "resume") == 0;
    context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    if (SSL_CTX_use_certificate_chain_file(context, argv[5]) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, argv[5], SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_load_verify_locations(context, argv[6], NULL) != 1) {
        ERR_print_errors_fp(stderr);
        return 1;
    }
    pthread_t ids[256];
    double began = now();
    end = began + atof(argv[4]);
    for (int i = 0; i < threads && i < 256; i++)
        pthread_create(&ids[i], NULL, worker, NULL);
    for (int i = 0; i < threads && i < 256; i++)
        pthread_join(ids[i], NULL);
    double seconds = now() - began;
    int count = done < MOST ? done : MOST;
    qsort(times, count, sizeof *times, ascending);
    printf("{\"requests\": %d, \"seconds\": %.6f, \"resumed\": %d, \"failed\": %d, \"p50\": %.6f, \"p99\": %.6f}\n",
           done, seconds, resumed, failed, count ? times[count / 2] : 0, count ? times[count * 99 / 100] : 0);
    return 0;
}
