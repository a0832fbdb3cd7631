import com.sun.net.httpserver.HttpServer;
import java.io.FileInputStream;
import java.net.InetSocketAddress;
import java.security.KeyStore;
import java.util.List;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.TrustManagerFactory;
import org.apache.activemq.broker.BrokerPlugin;
import org.apache.activemq.broker.BrokerService;
import org.apache.activemq.broker.SslContext;
import org.apache.activemq.broker.region.RegionBroker;
import org.apache.activemq.command.ActiveMQQueue;
import org.apache.activemq.security.AuthenticationUser;
import org.apache.activemq.security.SimpleAuthenticationPlugin;

/** ActiveMQ Classic with its default policies; GET /NAME at the control port answers with what the queue counts. */
public class Classic {
    public static void main(String[] arguments) throws Exception {
        var broker = new BrokerService();
        broker.setBrokerName("test");
        broker.setUseJmx(false);
        broker.setDataDirectory(System.getProperty("data"));
        broker.addConnector("stomp://127.0.0.1:" + System.getProperty("stomp")
            + "?wireFormat.maxDataLength=" + System.getProperty("limit", "104857600"));
        if (System.getProperty("keys") != null) {
            broker.setSslContext(tls(System.getProperty("keys")));
            broker.addConnector("stomp+ssl://127.0.0.1:" + System.getProperty("tls"));
            broker.addConnector("stomp+ssl://127.0.0.1:" + System.getProperty("mtls") + "?needClientAuth=true");
        }
        if (System.getProperty("password") != null) {
            var user = new AuthenticationUser("gateway", System.getProperty("password"), "users");
            broker.setPlugins(new BrokerPlugin[] {new SimpleAuthenticationPlugin(List.of(user))});
        }
        broker.start();
        control(broker);
        broker.waitUntilStopped();
        System.exit(0);
    }

    private static void control(BrokerService broker) throws Exception {
        var port = Integer.parseInt(System.getProperty("control"));
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        var queues = ((RegionBroker) broker.getRegionBroker()).getQueueRegion();
        server.createContext("/", exchange -> {
            var queue = queues.getDestinationMap().get(new ActiveMQQueue(exchange.getRequestURI().getPath().substring(1)));
            var counts = queue == null ? null : queue.getDestinationStatistics();
            var answer = counts == null ? "0 0" : counts.getDequeues().getCount() + " " + counts.getInflight().getCount();
            exchange.sendResponseHeaders(200, answer.length());
            exchange.getResponseBody().write(answer.getBytes());
            exchange.close();
        });
        server.start();
    }

    private static SslContext tls(String path) throws Exception {
        var keys = KeyStore.getInstance("PKCS12");
        try (var file = new FileInputStream(path)) {
            keys.load(file, "changeit".toCharArray());
        }
        var own = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        own.init(keys, "changeit".toCharArray());
        var trusted = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trusted.init(keys);
        return new SslContext(own.getKeyManagers(), trusted.getTrustManagers(), null);
    }
}
